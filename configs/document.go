package configs

import _ "embed"

//go:embed dotgate.yaml
var document string

// Document returns the file dotgate.yaml: every option with its default and its
// meaning, to begin a configuration of one's own with.
func Document() string { return document }
