package settings

import (
	"bytes"
	"cmp"

	"dotgate/configs"
	"dotgate/configs/files"
)

// maxNamesProblems is how many lines of a file of names are reported.
const maxNamesProblems = 10

// readNames adds the names of a route's file: one a line, without empty lines and
// what follows a #. A name may be there twice.
func (r *routeReader) readNames(route *Route, at configs.Source) {
	key, index := route.key+".names_file", len(r.all)
	text, err := r.ReadFile(route.NamesFile, files.NamesMax)
	if err != nil {
		r.Report(at, key, "%v", err)
		return
	}
	lines, problems := 0, 0
	for line := range bytes.Lines(text) {
		lines++
		line, _, _ = bytes.Cut(line, []byte("#"))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		name, problem := routeName(string(line))
		if problem == "" {
			has, added, err := r.names.Add(name, index)
			switch {
			case err != nil:
				problem = err.Error()
			case added:
				route.Name = cmp.Or(route.Name, name)
				continue
			case has == index:
				continue
			default:
				problem = "routes." + name + " is given twice"
			}
		}
		if problems++; problems <= maxNamesProblems {
			r.Report(configs.Source{Name: route.NamesFile, Line: lines}, key, "%s", problem)
		}
	}
	if problems > maxNamesProblems {
		r.Report(configs.Source{Name: route.NamesFile, Line: lines}, key, "%d further lines can't be used", problems-maxNamesProblems)
	}
	if route.Name == "" && problems == 0 {
		r.Report(at, key, "%s has no name", route.NamesFile)
	}
}
