package access

import (
	"net"
	"slices"
	"testing"
)

// TestInterfacesAreThoseOfTheSystem compares with package net, which reads them in another way.
func TestInterfacesAreThoseOfTheSystem(t *testing.T) {
	got, err := Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 {
			continue
		}
		i := slices.IndexFunc(got, func(i Interface) bool { return i.Name == l.Name })
		if i < 0 {
			t.Errorf("%s is missing", l.Name)
			continue
		}
		addresses, err := l.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addresses {
			if want := a.String(); !slices.Contains(textsOf(got[i]), want) {
				t.Errorf("%s: %s is missing; there are %v", l.Name, want, got[i].Addresses)
			}
		}
	}
}

func textsOf(i Interface) (texts []string) {
	for _, p := range i.Addresses {
		texts = append(texts, p.String())
	}
	return texts
}

func TestDefaultRoutesAreFound(t *testing.T) {
	// messages are of "ip route add …", as the kernel tells them.
	route := func(bits, kind byte, attributes ...byte) []byte {
		return append([]byte{2, bits, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0}, attributes...)
	}
	oif := []byte{8, 0, 4, 0, 5, 0, 0, 0}
	f := func(what string, m []byte, want ...uint32) {
		t.Helper()
		if got := defaultRoute(m); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	f("default dev 5", route(0, 1, oif...), 5)
	f("128.0.0.0/1 dev 5", route(1, 1, oif...), 5)
	f("10.0.0.0/8 dev 5", route(8, 1, oif...))
	f("unreachable default", route(0, 7, oif...))
	f("multipath", route(0, 1, append([]byte{20, 0, 9, 0}, 8, 0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0)...), 6, 7)
	f("a next hop by number", route(0, 1, 8, 0, 30, 0, 1, 0, 0, 0), anyInterface)
	f("cut short", route(0, 1, 200, 0, 4, 0, 5), anyInterface)
	f("not even a header", []byte{2, 0})
}
