package tunnel

import (
	"fmt"
	"io"

	"turbotunnel/common/front"
	"turbotunnel/common/names"
)

// LookUp has the names of ways, which are c's and complete otherwise, looked up as c
// says. What it returns is to be closed.
func (c Config) LookUp(ways []front.Config) (io.Closer, error) {
	p, err := c.parse()
	if err != nil {
		return nil, err
	}
	return p.lookUp(ways)
}

// lookUp is LookUp. A proxy looks up by itself the names that it gets, and where there
// is one, or sockets are somebody else's, the system's resolver is not asked past it.
func (p *parsed) lookUp(ways []front.Config) (io.Closer, error) {
	if p.doh == nil {
		for i := range ways {
			if w := &ways[i]; w.Proxy != nil || w.Dialer != nil || w.Control != nil {
				w.LookupECH = nil
			}
		}
		return noResolver{}, nil
	}
	resolver, err := names.New(p.doh, ways[0])
	if err != nil {
		return nil, fmt.Errorf("doh: %w", err)
	}
	for i := range ways {
		w := &ways[i]
		if w.LookupECH != nil {
			w.LookupECH = resolver.ECH
		}
		if w.Proxy == nil {
			w.Lookup = resolver.Addresses
		}
	}
	return resolver, nil
}

// noResolver stands where only the system's is asked.
type noResolver struct{}

func (noResolver) Close() error { return nil }
