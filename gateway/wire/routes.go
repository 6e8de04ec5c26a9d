package wire

// Routes has the names with upstreams of their own. The zero Routes, and nil, are
// empty. It may be read concurrently.
type Routes struct {
	names   *RouteNames
	sources []string // by route
}

// NewRoutes returns the Routes for names, which must not change any more. sources has,
// for each route, an identifier of its upstreams, which is not empty.
func NewRoutes(names *RouteNames, sources []string) *Routes { return &Routes{names, sources} }

// Find is RouteNames.Find.
func (rs *Routes) Find(name []byte) (route, below int, ok bool) {
	if rs == nil {
		return 0, 0, false
	}
	return rs.names.Find(name)
}

// Source returns the source of the route for name, or "" if there is none.
func (rs *Routes) Source(name []byte) string {
	if route, _, ok := rs.Find(name); ok {
		return rs.sources[route]
	}
	return ""
}

// Equal reports whether both have the same names, with the same sources.
func (rs *Routes) Equal(other *Routes) bool {
	if rs == nil || other == nil {
		return rs.len() == other.len()
	}
	return rs.names.equal(other.names, func(a, b int) bool { return rs.sources[a] == other.sources[b] })
}

func (rs *Routes) len() int {
	if rs == nil {
		return 0
	}
	return rs.names.Len()
}
