package settings

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

	"dotgate/balancer"
	"dotgate/configs"
	"dotgate/configs/files"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// A Route is one list of upstreams, and the names that are asked there and nowhere
// else.
type Route struct {
	// Name is the first of Names.
	Name string
	// NamesFile has names, one a line. Empty: there is no file.
	NamesFile string
	// Upstreams are never empty.
	Upstreams []Upstream
	// Policy orders them for a query. Default: balancer.policy.
	Policy string

	key     string           // where it stands: routes.corp.example or routes[2]
	written int              // how many of Names stand in the configuration itself
	all     *wire.RouteNames // the names of all routes
	index   int              // of this route
}

// Names are patterns, as wire.CleanPattern returns them: corp.example is that name and
// all names below it, *.corp.example only the names below it. Those of the
// configuration itself come first, then those of NamesFile. There is at least one, and
// no pattern is in two routes. Each is made from a smaller form when it is asked for.
func (r Route) Names() iter.Seq[string] { return r.all.Patterns(r.index) }

// RouteNames are the names of all routes, with the index of each in Routes. They do
// not change.
func (c *Config) RouteNames() *wire.RouteNames {
	if len(c.Routes) == 0 {
		return nil
	}
	return c.Routes[0].all
}

// A routeReader is the reading of all routes.
type routeReader struct {
	*loader
	all   []Route
	lists map[string]int // the index in all of each list of upstreams, by how it is written
	names *wire.RouteNames
}

// routes reads the routes: a mapping of names to upstreams, or a list of mappings
// for several names each. In the environment, which has no mappings, an element of
// the list is a text: corp.example=udp://10.0.0.53.
func (l *loader) routes(v configs.Value) []Route {
	r := &routeReader{loader: l, lists: make(map[string]int), names: new(wire.RouteNames)}
	switch {
	case v.IsList():
		r.readList(v)
	case v.IsMapping():
		for _, pair := range v.Pairs() {
			if name := pair[0]; !name.IsScalar() {
				r.Report(name.At, "routes", "%s is no domain name", name.Kind())
			} else {
				r.addNames([]string{name.Text()}, pair[1])
			}
		}
	case !v.IsNull():
		l.Report(v.At, "routes", "is %s; it takes names with upstreams, as in {corp.example: [udp://10.0.0.53]}", v.Kind())
	}
	r.names.Pack()
	for i := range r.all {
		r.all[i].all, r.all[i].index = r.names, i
	}
	return r.all
}

// addNames adds names with one list of upstreams. Names whose lists are written the
// same way become one route: a route costs more than a name.
func (r *routeReader) addNames(texts []string, value configs.Value) {
	list := value.Canonical()
	index, found := r.lists[list]
	if !found {
		index = len(r.all)
	}
	var route Route
	if found {
		route = r.all[index]
	}
	for _, text := range texts {
		r.addName(&route, value.At, "routes", text, index)
	}
	switch {
	case found:
		r.all[index] = route
	case route.written > 0:
		route.key = "routes." + route.Name
		r.config.origins[route.key] = value.At
		r.lists[list] = index
		r.all = append(r.all, r.read(route, value))
	}
}

// addName adds the name that text is to the route that is to be the one at index, if
// it can have it.
func (r *routeReader) addName(route *Route, at configs.Source, key, text string, index int) {
	name, problem := routeName(text)
	if problem != "" {
		r.Report(at, key, "%s", problem)
		return
	}
	if _, added, err := r.names.Add(name, index); err != nil {
		r.Report(at, key, "%v", err)
	} else if !added {
		r.Report(at, "routes."+name, "is given twice")
	} else {
		route.Name = cmp.Or(route.Name, name)
		route.written++
	}
}

// routeName returns the pattern that text stands for, or why it stands for none.
func routeName(text string) (pattern, problem string) {
	if text == "." || text == "*" || text == "*." {
		return "", fmt.Sprintf("%q is every name; the upstreams for all names that have no route of their own go into upstreams", text)
	}
	pattern, err := wire.CleanPattern(text)
	if err != nil {
		return "", err.Error()
	}
	return pattern, ""
}

// read reads the upstreams and the policy of a route: a list, or a mapping with both.
func (l *loader) read(r Route, value configs.Value) Route {
	list := value
	if value.IsMapping() {
		var ok bool
		if list, ok = l.readRoute(&r, value, "policy", "upstreams")["upstreams"]; !ok {
			return r
		}
	}
	r.Upstreams = l.upstreams(r.key+".upstreams", list)
	return r
}

// readRoute reads the mapping of a route, which has these keys, and sets the policy.
func (l *loader) readRoute(r *Route, value configs.Value, names ...string) map[string]configs.Value {
	written := l.Section(r.key, value, names...)
	if policy, ok := written["policy"]; ok {
		r.Policy = policy.Text()
		l.config.origins[r.key+".policy"] = policy.At
	}
	if _, ok := written["upstreams"]; !ok {
		l.Report(value.At, r.key+".upstreams", "is missing; it takes a list, as in [udp://10.0.0.53]")
	}
	return written
}

// readList reads a list whose elements are mappings, or texts of the form
// NAME=UPSTREAM.
func (r *routeReader) readList(list configs.Value) {
	type entry struct {
		at        configs.Source
		names     string
		upstreams []configs.Value
	}
	var entries []*entry
	known := make(map[string]*entry)
	for i, element := range list.List() {
		if element.IsMapping() {
			r.addMapping(fmt.Sprintf("routes[%d]", i), element)
			continue
		}
		names, upstream, ok := strings.Cut(strings.TrimSpace(element.Text()), "=")
		if !element.IsScalar() || !ok {
			r.Report(element.At, "routes", "%s is not NAME=UPSTREAM, as in corp.example=udp://10.0.0.53", element.Kind())
			continue
		}
		e := known[strings.ToLower(names)]
		if e == nil {
			e = &entry{at: element.At, names: names}
			known[strings.ToLower(names)] = e
			entries = append(entries, e)
		}
		e.upstreams = append(e.upstreams, configs.TextOf(element.At, upstream))
	}
	for _, e := range entries {
		value := configs.ListOf(e.at, e.upstreams...)
		if file, ok := strings.CutPrefix(e.names, "@"); ok {
			r.add(r.read(Route{key: "routes." + e.names, NamesFile: file}, value), e.at)
			continue
		}
		r.addNames(strings.Split(e.names, "+"), value)
	}
}

// addMapping adds a route that is written as {names: …, names_file: …, upstreams: …}.
func (r *routeReader) addMapping(key string, value configs.Value) {
	r.config.origins[key] = value.At
	route := Route{key: key}
	written := r.readRoute(&route, value, "names", "names_file", "policy", "upstreams")
	if list, ok := written["upstreams"]; ok {
		route.Upstreams = r.upstreams(key+".upstreams", list)
	}
	if file, ok := written["names_file"]; ok {
		if route.NamesFile = file.Text(); route.NamesFile == "" {
			r.Report(file.At, key+".names_file", "is %s; it takes the name of a file", file.Kind())
		}
	}
	if names, ok := written["names"]; ok {
		r.addListed(&route, names)
	} else if route.NamesFile == "" {
		r.Report(value.At, key+".names", "is missing; it takes names, as in [corp.example, 10.in-addr.arpa], or names_file a file of them")
	}
	r.add(route, value.At)
}

// addListed adds the names in a list to the next route.
func (r *routeReader) addListed(route *Route, names configs.Value) {
	key := route.key + ".names"
	if !names.IsList() {
		r.Report(names.At, key, "is %s; it takes a list, as in [corp.example, 10.in-addr.arpa]", names.Kind())
		return
	}
	if len(names.List()) == 0 && route.NamesFile == "" {
		r.Report(names.At, key, "is an empty list: the route would be for no name; remove it if that is meant")
	}
	for _, name := range names.List() {
		if !name.IsScalar() {
			r.Report(name.At, key, "%s is no domain name", name.Kind())
			continue
		}
		r.addName(route, name.At, key, name.Text(), len(r.all))
	}
}

// add adds a route with the names of its file.
func (r *routeReader) add(route Route, at configs.Source) {
	r.config.origins[route.key] = at
	if route.NamesFile != "" {
		r.readNames(&route, at)
	}
	if route.Name != "" { // or else that was reported
		r.all = append(r.all, route)
	}
}

// sharePolicy gives the common policy to each route that has none.
func (l *loader) sharePolicy() {
	for i := range l.config.Routes {
		if r := &l.config.Routes[i]; r.Policy == "" {
			r.Policy = l.config.Balancer.Policy
			l.config.origins[r.key+".policy"] = l.config.origins["balancer.policy"]
			l.Mute(r.key + ".policy") // checked once, where it is from
		}
	}
}

// checkRoutes reports what is wrong with routes besides their upstreams, and
// upstreams in clear text beside others: they would be their fallback.
func (l *loader) checkRoutes() {
	l.checkMixed("upstreams", l.config.Upstreams)
	for _, r := range l.config.Routes {
		l.checkMixed(r.key+".upstreams", r.Upstreams)
		balancer.Options{Policy: r.Policy}.Check(l.Reporter(r.key))
	}
}

func (l *loader) checkMixed(list string, all []Upstream) {
	secure := slices.ContainsFunc(all, func(u Upstream) bool { return u.Protocol == upstreams.TLS })
	for i, u := range all {
		if key := entryKey(list, i); secure && u.Protocol != upstreams.TLS && !l.IsMuted(key) {
			l.Report(l.config.origins[key], key, "is in clear text, in one list with upstreams over TLS, and would be their fallback; give it a route of its own")
		}
	}
}

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

// maxApexNotes is how many wildcards are noted: one says how it is with all of them.
const maxApexNotes = 10

// noteApexes notes each route whose own name is asked elsewhere: a wildcard is for the
// names below it only.
func (l *loader) noteApexes() {
	var starred []string
	for _, r := range l.config.Routes {
		for name := range r.Names() {
			if apex, below := wire.Apex(name); below && len(starred) < maxApexNotes {
				starred = append(starred, apex)
			}
		}
	}
	if len(starred) == 0 {
		return
	}
	var routed wire.Patterns[string]
	for _, r := range l.config.Routes {
		for name := range r.Names() {
			_, _ = routed.Add(name, "routes."+name) // the name was checked
		}
	}
	for _, apex := range starred {
		packed, err := wire.PackName(apex)
		if err != nil {
			continue // it was checked
		}
		where := "upstreams"
		if key, _, ok := routed.Find(packed); ok {
			where = key
		}
		if where != "routes."+apex {
			l.Note("routes.*.%s is for the names below %s only: %s itself is asked at %s; a route %s is for both", apex, apex, apex, where, apex)
		}
	}
}
