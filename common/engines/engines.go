// Package engines is the one place that names every engine there is.
package engines

import (
	"turbotunnel/common/engine"
	"turbotunnel/common/engine/kcp"
	"turbotunnel/common/engine/kcpsmux"
	"turbotunnel/common/engine/quic"
	"turbotunnel/common/engine/sctp"
)

// Default is the name of the engine that is used when none is named.
const Default = "kcp-smux"

// all in the order in which they are listed to a person. It is not changed.
var all = []engine.Engine{kcpsmux.Engine{}, kcp.Engine{}, sctp.Engine{}, quic.Engine{}}

// Names returns the names of all engines, the default first.
func Names() []string {
	names := make([]string, len(all))
	for i, e := range all {
		names[i] = e.Name()
	}
	return names
}

// Find returns the engine of that name.
func Find(name string) (engine.Engine, bool) {
	for _, e := range all {
		if e.Name() == name {
			return e, true
		}
	}
	return nil, false
}
