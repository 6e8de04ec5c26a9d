package settings

import (
	"os"
	"strings"
	"testing"
)

// TestExamplesInDocumentsLoad: each example in YAML is a configuration that check takes.
func TestExamplesInDocumentsLoad(t *testing.T) {
	t.Parallel()
	loaded := 0
	for _, file := range []string{"../../../../README.md", "../../../../SECURITY.md", "../../../../docker/README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
			document, _, _ := strings.Cut(block, "```")
			loaded++
			// A key can't be in an example, and none is there unless it is asked for.
			if _, err := parse(document, "DOTGATE_PEERS_KEY="+strings.Repeat("0123456789abcdef", 4)); err != nil {
				t.Errorf("%s: an example is refused:\n%s\n%v", file, document, err)
			}
		}
	}
	if loaded == 0 {
		t.Error("there is no example")
	}
}
