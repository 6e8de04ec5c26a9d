package gateway

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"dotgate/gateway/wire"
)

const (
	// domainShare is how many queries for a domain may be under way when its
	// servers seem not to answer.
	domainShare = 100
	// domainPatience is how long none of them may have had an answer for that.
	domainPatience = 500 * time.Millisecond
	// domainBad is how many more queries must have failed than, weighed by
	// domainGood, had an answer, for a domain to be held back from the start; and
	// domainBadMax what is remembered of it at most, so that it is soon over.
	domainBad, domainBadMax, domainGood = 100, 200, 4
	// domainMemory is how long it is remembered.
	domainMemory = 10 * time.Second
	// maxDomains bounds how many domains are remembered that have nothing under way.
	maxDomains = 1 << 12
)

// errDomain is what becomes of queries for a domain that is held back.
var errDomain = errors.New("too many queries under way for a domain whose servers don't answer")

// domains bound what one registrable domain can take up. Somebody who asks for
// thousands of new names a second below one whose servers are silent, each of which
// takes seconds to fail, would otherwise fill all that there is for everybody.
//
// As long as a domain's names are answered, there is no bound; nor while nobody
// else's are, for then it is not the domain.
type domains struct {
	log *slog.Logger

	mu    sync.Mutex // guards the rest
	known map[string]*domain
	good  time.Time // of the last answer for any of them
}

// A domain is one with queries under way, or with failures lately.
type domain struct {
	name     string
	underWay int
	bad      int       // failures, as far as answers don't outweigh them
	good     time.Time // of the last answer, or when there began to be many queries
	used     time.Time // when the last query ended
	held     bool      // that it is held back was told
}

// enter takes note that q is about to be asked. The error is errDomain if it should
// not be.
func (ds *domains) enter(q wire.Query) (*domain, error) {
	var room [wire.MaxKey]byte
	name := registrable(q.AppendName(room[:0]))
	now := time.Now()
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.known[name]
	if d == nil {
		ds.forget()
		d = &domain{name: name}
		ds.known[name] = d
	}
	if d.underWay == 0 && now.Sub(d.used) > domainMemory {
		d.bad, d.held = 0, false
	}
	if d.underWay < domainShare {
		d.good = now
	} else if stuck := d.bad >= domainBad || now.Sub(d.good) > domainPatience; stuck && now.Sub(ds.good) < domainPatience {
		if !d.held {
			d.held = true
			ds.log.Warn("holding back queries for a domain whose servers don't answer", "domain", name, "under_way", d.underWay)
		}
		return nil, errDomain
	}
	d.underWay++
	return d, nil
}

// leave takes note that a query for d has ended.
func (ds *domains) leave(d *domain, answered bool) {
	now := time.Now()
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d.underWay--
	d.used = now
	if answered {
		d.good, ds.good = now, now
		d.bad = max(0, d.bad-domainGood)
	} else {
		d.bad = min(d.bad+1, domainBadMax)
	}
	if d.underWay == 0 && d.bad == 0 {
		delete(ds.known, d.name)
	}
}

// forget makes room for a domain if there are many: another one without queries
// goes, whichever comes up.
func (ds *domains) forget() {
	if len(ds.known) < maxDomains {
		return
	}
	tries := 0
	for name, d := range ds.known {
		if d.underWay == 0 {
			delete(ds.known, name)
			return
		}
		if tries++; tries == 100 { // most have queries, which are bounded
			return
		}
	}
}

// registrable returns the domain that a name, in wire format and lower case, is
// below, as people register them: example.co.uk. Labels with odd octets are as good
// as any.
func registrable(name []byte) string {
	text := make([]byte, 0, wire.MaxKey)
	for at := 0; name[at] != 0; at += 1 + int(name[at]) {
		if at > 0 {
			text = append(text, '.')
		}
		text = append(text, name[at+1:at+1+int(name[at])]...)
	}
	whole := string(text)
	if domain, err := publicsuffix.EffectiveTLDPlusOne(whole); err == nil {
		return domain
	}
	return whole
}
