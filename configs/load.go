// Package configs fills a struct of options from a YAML file, environment variables and
// flags, each laid over the one before and all of them over the defaults that the struct
// has. It knows fields by their tags only and imports no package that has options:
// lists of mappings, addresses and all checks are the caller's.
//
// Sources are read by NewLoader and Fill only, so nothing changes under a running
// program: to reload is to load again. An unusable value is an error; none is replaced
// by a default.
//
// Viper layers the four sources. It does not read them: it would lower the case of keys,
// take only the environment of its own process, and lose lines, keys that are given twice
// and variables that do not exist, which errors here have to name.
package configs

import (
	"reflect"

	"github.com/spf13/viper"

	"dotgate/configs/files"
)

// Sources are what a Loader reads, each laid over the one before: the defaults,
// the file, the environment, the flags.
type Sources struct {
	// File names the YAML file. Empty: there is none.
	File string
	// Environ are the variables, as os.Environ returns them. Those whose names do not
	// start with DOTGATE_ are ignored, and so is DOTGATE_CONFIG, which names the file.
	Environ []string
	// Flags are the values from the command line by key: one value, or all elements of
	// a list. A flag has the name of the last word of its key: "gateway.listen" is
	// --listen. A flag without values was not given.
	Flags map[string][]string
	// Read reads the file, and others that the configuration names, of at most limit
	// octets. Nil: files.Read.
	Read func(path string, limit int) ([]byte, error)
	// Defaults is a document that asks for the defaults, for the error about an empty
	// file.
	Defaults string
	// Partly leaves out up to three sections that are not YAML, rather than the whole
	// file. They are errors all the same.
	Partly bool
}

// A Loader is one reading of all sources.
type Loader struct {
	sources  Sources
	settings []Setting
	skips    int            // how many sections with mistakes may be left out
	given    map[string]any // by the file: a Value for each key
	layers   *viper.Viper

	origins  Origins
	notes    []string
	problems Problems
	muted    map[string]bool // keys about which nothing more is reported
}

// NewLoader returns a Loader that has read nothing yet.
func NewLoader(s Sources) *Loader {
	l := &Loader{sources: s, given: make(map[string]any), origins: make(Origins), muted: make(map[string]bool)}
	if s.Read == nil {
		l.sources.Read = files.Read
	}
	if s.Partly {
		l.skips = 3 // to find each mistake takes time
	}
	return l
}

// Fill reads all sources and sets each field of into, a pointer to a struct with the
// defaults. It leaves out lists of structs, whose values Value returns.
func (l *Loader) Fill(into any, parse Parser) {
	l.settings = SettingsOf("", into)
	if l.sources.File != "" {
		l.readFile()
	}
	l.layer()
	for _, s := range l.settings {
		if v, ok := l.Value(s.Key); ok {
			l.origins[s.Key] = v.At
			if !s.isSpecial() {
				l.Set(s, v, parse)
			}
		}
	}
}

// layer lays the sources over each other, by key. Values go into the slots whose order
// viper defines: config (the environment merged over the file), override.
func (l *Loader) layer() {
	// Keys are whole here: viper does not split them at a delimiter that none has.
	l.layers = viper.NewWithOptions(viper.KeyDelimiter("::"))
	for _, s := range l.settings {
		if !s.isSpecial() {
			l.layers.SetDefault(s.Key, Value{node: nodeOf(s.Field)})
		}
	}
	for _, layer := range []map[string]any{l.given, l.environ(l.sources.Environ)} {
		// The error is in the signature only: nothing in there can fail.
		_ = l.layers.MergeConfigMap(layer)
	}
	for key, v := range l.flags(l.sources.Flags) {
		l.layers.Set(key, v)
	}
}

// Value returns the value of a key after layering. It is false for a list of structs that
// no source has.
func (l *Loader) Value(key string) (Value, bool) {
	v, ok := l.layers.Get(key).(Value)
	return v, ok
}

// ReadFile reads a file that the configuration names, of at most limit octets.
func (l *Loader) ReadFile(path string, limit int) ([]byte, error) {
	return l.sources.Read(path, limit)
}

// A Checker is a struct of options that reports each one that can't be used: by the name
// in its tag, what is wrong with it and what to write, and the names of the options beside
// it that its value does not go with. Where it has its default, one of those was set.
type Checker interface {
	Check(report func(option, problem string, beside ...string))
}

// Check has each section of a struct checked that is a Checker.
func (l *Loader) Check(config any) {
	value := reflect.ValueOf(config).Elem()
	for i := range value.NumField() {
		key := value.Type().Field(i).Tag.Get(keyTag)
		if key == "" {
			continue
		}
		if section, ok := value.Field(i).Interface().(Checker); ok {
			section.Check(l.Reporter(key))
		}
	}
}

// Err returns all Problems that were reported, or nil.
func (l *Loader) Err() error {
	if len(l.problems) == 0 {
		return nil
	}
	return l.problems.sorted(l.sources.File)
}

// Origins returns where each value is from. The Loader and its caller share it.
func (l *Loader) Origins() Origins { return l.origins }

// Notes returns what Note was told.
func (l *Loader) Notes() []string { return l.notes }
