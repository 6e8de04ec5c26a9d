package settings

import (
	"slices"
	"strings"
	"testing"
)

func TestAListOfPeersIsShortForTheirNodes(t *testing.T) {
	t.Parallel()
	key := "DOTGATE_PEERS_KEY=" + strings.Repeat("01", 32) + "," + strings.Repeat("02", 32)
	f := func(document string, environ []string, want ...string) {
		t.Helper()
		c := mustParse(t, document, append(environ, key)...)
		if !slices.Equal(c.Peers.Nodes, want) || len(c.Peers.Key) != 2 {
			t.Errorf("%s, %v: got %v", document, environ, c.Peers.Nodes)
		}
	}
	f("peers: [dotgate-b]", nil, "dotgate-b")
	f("peers:\n  - dotgate-b\n  - dotgate-c:99\n", nil, "dotgate-b", "dotgate-c:99")
	f("peers: {nodes: [dotgate-b]}", nil, "dotgate-b")
	f("", []string{"DOTGATE_PEERS=dotgate-b,dotgate-c"}, "dotgate-b", "dotgate-c")
	f("peers: [a]", []string{"DOTGATE_PEERS_NODES=b"}, "b")
}

func TestPeersThatCannotBe(t *testing.T) {
	t.Parallel()
	f := func(document, want string, environ ...string) {
		t.Helper()
		_, err := parse(document, environ...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", document, err, want)
		}
	}
	f("peers: [dotgate-b]", "peers.key: is missing: peers never use clear text")
	f("peers: dotgate-b", `peers: is "dotgate-b"; it is a section`)
	f("peers: {nodes: [b], key: [secret]}", "peers.key: is not 64 hexadecimal digits")
	f("", "is given twice", "DOTGATE_PEERS=a", "DOTGATE_PEERS_NODES=b")
}
