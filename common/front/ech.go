package front

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"time"

	utls "github.com/refraction-networking/utls"
)

// echWait is how long a connection waits for DNS to tell the front's key.
const echWait = 2 * time.Second

// An echKey is with what a front's name is encrypted in TLS, if with anything. Safe
// for concurrent use.
type echKey struct {
	name   string                                                 // the front's; constant, like lookup
	lookup func(ctx context.Context, host string) ([]byte, error) // nil: list is all that there is

	mu    sync.Mutex
	list  []byte    // an ECHConfigList; nil: none. Guarded by mu, like heard
	heard time.Time // when DNS was asked, or the front has told it; zero: not yet
}

// newECHKey returns what cfg says of the front of that name.
func newECHKey(cfg Config, name string) *echKey {
	k := &echKey{name: name, lookup: cfg.LookupECH, list: cfg.ECH}
	if cfg.ECH != nil {
		k.lookup = nil
	}
	return k
}

// current returns the ECHConfigList for the next handshake, nil for none. Where DNS
// says nothing the handshake goes on without: a name in the clear is what there is
// with every front that has no key.
func (k *echKey) current(ctx context.Context) []byte {
	k.mu.Lock()
	list, old := k.list, k.lookup != nil && (k.heard.IsZero() || time.Since(k.heard) >= answersKept)
	k.mu.Unlock()
	if !old {
		return list
	}
	ctx, cancel := context.WithTimeout(ctx, echWait)
	defer cancel()
	found, err := k.lookup(ctx, k.name)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard = time.Now()
	if err == nil && checkECH(found) == nil {
		k.list = found // an answer that got lost takes nothing away
	}
	return k.list
}

// refused tells whether a handshake failed for err because the front has another key,
// which is used from now on. Who holds the certificate of the public name says so.
func (k *echKey) refused(err error) bool {
	var list []byte
	var rejection *tls.ECHRejectionError
	var urejection *utls.ECHRejectionError
	switch {
	case errors.As(err, &rejection):
		list = rejection.RetryConfigList
	case errors.As(err, &urejection):
		list = urejection.RetryConfigList
	}
	if len(list) == 0 || checkECH(list) != nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list, k.heard = list, time.Now()
	return true
}
