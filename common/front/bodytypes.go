package front

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
)

// A bodyTypes is what the requests through a front call the type of their bodies.
// Firewalls for web applications refuse types: the OWASP Core Rule Set those that
// it does not know, application/octet-stream among them, and what does not parse as
// the type that it claims to be. So when all is refused the next type is tried. Safe
// for concurrent use.
type bodyTypes struct {
	all []string // constant

	mu   sync.Mutex // guards what follows
	at   int        // the place of the one in use
	good int        // how many answers speak for it, mostGood at most
}

// mostGood bounds what answers of long ago count: six refusals in a row are enough,
// and a front that is out of order for a moment seldom gives more of them.
const mostGood = 32

func newBodyTypes() bodyTypes {
	return bodyTypes{all: []string{
		// A script that posts an ArrayBuffer by fetch() gives it no type. The Core
		// Rule Set counts 2 of the 5 points for which it refuses a request.
		"",
		// 3 others are for a host that is an address. Core Rule Set 3 permits this
		// type, which no firewall is known to parse; 4 does not.
		fmt.Sprintf("multipart/related; boundary=-------%020d", rand.Uint64()),
		// Some gateways take a body without a type for text: Amazon's for JSON.
		"application/octet-stream",
	}}
}

// current is the type of the next request's body; empty: it has none.
func (b *bodyTypes) current() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[b.at]
}

// answered is told of the status of the answer to a body of a type.
func (b *bodyTypes) answered(name string, status int) {
	switch {
	case status == http.StatusOK:
		b.mu.Lock()
		defer b.mu.Unlock()
		if name == b.all[b.at] {
			b.good = min(b.good+1, mostGood)
		}
	case status == http.StatusRequestEntityTooLarge, status == http.StatusTooManyRequests,
		status == http.StatusMisdirectedRequest, status >= http.StatusInternalServerError:
		// It was for something else.
	default:
		b.refused(name)
	}
}

// refused is told that a body of a type was answered, and not by the server.
func (b *bodyTypes) refused(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name != b.all[b.at] {
		return
	}
	if b.good /= 2; b.good == 0 {
		b.at = (b.at + 1) % len(b.all)
	}
}
