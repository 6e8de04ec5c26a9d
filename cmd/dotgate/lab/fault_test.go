//go:build linux && lab

package lab

import (
	"crypto/tls"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// A fault of an upstream. It is written as words:
//
//	stop, blackhole    no new connections: refused, or without a reply
//	freeze, reset      established connections go silent, or are reset
//	restart            down for 300 ms, with all connections reset
//	blip               300 ms without any packet
//	certificate=WHICH  expired, future, self, stranger, name or good
//
// or fields of dottest.Fault: never, share=0.5, rcode=SERVFAIL, greeting=silence.
// With "http.", it is a field of dottest.HTTPSFault: http.status=503, and with "quic." one of
// dottest.QUICFault: quic.drop. Other faults are of the server over TLS.
//
// In a network:
//
//	nft-refused        a TCP reset for every packet; nft-unreachable, nft-prohibited: the ICMP message
//	nft-syn            no new connections: their packets are lost
//	nft-established    packets of established connections are lost
//	loss=10            each packet is lost with that probability in percent, both ways
//	forget=2s          packets of a flow that was idle for that time are lost
//	mtu=1200           longer packets are lost, both ways
//	port=853           the faults above are at that port only
//	prefix=1           they are at the first address only
//	no-route           no route to the upstream
//	link-down          the gateway's end of the link is down; carrier-lost: the upstream's
//	kill, pause        Unbound is killed, or stopped, until the end of the fault
//	restart            Unbound is killed and started again
type fault struct {
	words       []string
	behaviour   dottest.Fault
	behaves     bool // behaviour is set
	https       dottest.HTTPSFault
	quic        dottest.QUICFault
	certificate string
	loss        int
	forget      time.Duration
	mtu         int
	port        int // 0: all
	prefix      int // 0: all
}

var (
	serverWords  = []string{"stop", "blackhole", "freeze", "reset", "restart", "blip"}
	networkWords = []string{
		"nft-refused", "nft-unreachable", "nft-prohibited", "nft-syn", "nft-established",
		"no-route", "link-down", "carrier-lost", "kill", "pause", "restart",
	}
)

func (f fault) has(word string) bool { return slices.Contains(f.words, word) }

func (f fault) empty() bool {
	return !f.behaves && f.certificate == "" && len(f.words) == 0 && f.loss == 0 && f.forget == 0 && f.mtu == 0 && f.https == (dottest.HTTPSFault{}) && f.quic == (dottest.QUICFault{})
}

// refuses reports whether dials fail at once.
func (f fault) refuses() bool {
	return f.has("stop") || f.has("kill") || f.has("nft-refused") || f.has("nft-unreachable") || f.has("nft-prohibited")
}

// mute reports whether an upstream with this fault must not get a single query,
// because its identity can't be verified.
func (f fault) mute() bool {
	return f.certificate != "" && f.certificate != "good" ||
		f.behaviour.MaxVersion != 0 && f.behaviour.MaxVersion < tls.VersionTLS12
}

func parseFault(text string, network bool) (f fault, err error) {
	for word := range strings.FieldsSeq(text) {
		if err := f.add(word, network); err != nil {
			return f, fmt.Errorf("%s: %w", word, err)
		}
	}
	return f, nil
}

func (f *fault) add(word string, network bool) (err error) {
	words := serverWords
	if network {
		words = networkWords
	}
	if slices.Contains(words, word) {
		f.words = append(f.words, word)
		return nil
	}
	key, value, isPair := strings.Cut(word, "=")
	if !isPair {
		value = "true"
	}
	switch {
	case network && key == "loss":
		_, err = fmt.Sscan(value, &f.loss)
	case network && key == "mtu":
		_, err = fmt.Sscan(value, &f.mtu)
	case network && key == "port":
		_, err = fmt.Sscan(value, &f.port)
	case network && key == "prefix":
		_, err = fmt.Sscan(value, &f.prefix)
	case network && key == "forget":
		f.forget, err = time.ParseDuration(value)
	case network:
		err = fmt.Errorf("a network can't do that wrong")
	case key == "certificate":
		f.certificate = value
	case strings.HasPrefix(key, "http."):
		err = setField(&f.https, strings.TrimPrefix(key, "http."), value)
	case strings.HasPrefix(key, "quic."):
		err = setField(&f.quic, strings.TrimPrefix(key, "quic."), value)
	default:
		err, f.behaves = setField(&f.behaviour, key, value), true
	}
	return err
}

// setField sets a field of a struct that f points to.
func setField(f any, name, value string) error {
	field := reflect.ValueOf(f).Elem().FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, name) })
	if !field.IsValid() {
		return fmt.Errorf("a server can't do that wrong")
	}
	switch p := field.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(value))
	case *bool:
		*p = value == "true"
	case *time.Duration:
		d, err := time.ParseDuration(value)
		*p = d
		return err
	case *float64, *int, *int64:
		_, err := fmt.Sscan(value, p)
		return err
	case *uint16:
		*p = map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12}[value]
		if *p == 0 {
			return fmt.Errorf("no TLS version that makes a difference")
		}
	case *wire.Type:
		switch value {
		case "A":
			*p = wire.TypeA
		case "AAAA":
			*p = wire.TypeAAAA
		default:
			return fmt.Errorf("no type that clients ask for")
		}
	case *wire.RCode:
		for r := range wire.RCode(16) {
			if r.String() == value {
				*p = r
			}
		}
		if *p == wire.NoError {
			return fmt.Errorf("no error")
		}
	default:
		return fmt.Errorf("can't be written as text")
	}
	return nil
}
