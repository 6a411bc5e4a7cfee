package front

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
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
	list, _ := rejection(err)
	if len(list) == 0 || checkECH(list) != nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list, k.heard = list, time.Now()
	return true
}

// rejection tells whether a handshake failed for err because the front does not take
// the encrypted name, and by which ECHConfigList it would, if it says one.
func rejection(err error) (retry []byte, rejected bool) {
	var std *tls.ECHRejectionError
	var imitated *utls.ECHRejectionError
	switch {
	case errors.As(err, &std):
		return std.RetryConfigList, true
	case errors.As(err, &imitated):
		return imitated.RetryConfigList, true
	}
	return nil, false
}

// checkECH tells whether list is empty, or an ECHConfigList of which both TLS
// libraries can use a key. One without such a key, as of a later version, is to be
// treated as none (RFC 9849 section 6.1), and they let the handshake fail instead.
func checkECH(list []byte) error {
	if len(list) == 0 {
		return nil
	}
	// They take the length modulo 65536.
	if len(list) < 6 || int(binary.BigEndian.Uint16(list)) != len(list)-2 {
		return errors.New("ech: no ECHConfigList")
	}
	const name = "front.invalid"
	err := tls.Client(nowhere{}, &tls.Config{ServerName: name, EncryptedClientHelloConfigList: list}).Handshake()
	if errors.Is(err, errNowhere) {
		err = utls.Client(nowhere{}, &utls.Config{ServerName: name, EncryptedClientHelloConfigList: list}).Handshake()
	}
	if !errors.Is(err, errNowhere) {
		return errors.New("ech: an ECHConfigList without a key that can be used here")
	}
	return nil
}

var errNowhere = errors.New("this connection leads nowhere")

// nowhere is a connection for handshakes that shall get no further than to the
// ClientHello. Whatever is written to it fails with errNowhere.
type nowhere struct{ net.Conn }

func (nowhere) Write([]byte) (int, error)        { return 0, errNowhere }
func (nowhere) Read([]byte) (int, error)         { return 0, errNowhere }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }
func (nowhere) Close() error                     { return nil }
