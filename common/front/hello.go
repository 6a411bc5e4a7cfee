package front

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"

	utls "github.com/refraction-networking/utls"
)

// A hello is a ClientHello to imitate, and the browser whose HTTP headers go
// with it.
type hello struct {
	id      utls.ClientHelloID
	browser *browser
}

// hellos maps what the argument utls= accepts to ClientHellos: browsers whose
// TLS 1.3 ClientHello offers both h2 and http/1.1. "none" is not in it.
//
// The PSK ones offer a session of an earlier connection, which the others do
// only under TLS 1.2.
var hellos = map[string]hello{
	"chrome":            {utls.HelloChrome_Auto, &chrome},
	"chrome_100":        {utls.HelloChrome_100, &chrome},
	"chrome_102":        {utls.HelloChrome_102, &chrome},
	"chrome_106":        {utls.HelloChrome_106_Shuffle, &chrome},
	"chrome_112_psk":    {utls.HelloChrome_112_PSK_Shuf, &chrome},
	"chrome_115_pq":     {utls.HelloChrome_115_PQ, &chrome},
	"chrome_115_pq_psk": {utls.HelloChrome_115_PQ_PSK, &chrome},
	"chrome_120":        {utls.HelloChrome_120, &chrome},
	"chrome_120_pq":     {utls.HelloChrome_120_PQ, &chrome},
	"chrome_131":        {utls.HelloChrome_131, &chrome},
	"chrome_133":        {utls.HelloChrome_133, &chrome},
	"firefox":           {utls.HelloFirefox_Auto, &firefox},
	"firefox_99":        {utls.HelloFirefox_99, &firefox},
	"firefox_102":       {utls.HelloFirefox_102, &firefox},
	"firefox_105":       {utls.HelloFirefox_105, &firefox},
	"firefox_120":       {utls.HelloFirefox_120, &firefox},
	"ios":               {utls.HelloIOS_Auto, &safari},
	"ios_13":            {utls.HelloIOS_13, &safari},
	"ios_14":            {utls.HelloIOS_14, &safari},
	"safari":            {utls.HelloSafari_Auto, &safari},
	"safari_16_0":       {utls.HelloSafari_16_0, &safari},
}

// ownHello is the name of Go's own ClientHello, by crypto/tls.
const ownHello = "none"

// Hellos returns the names of the ClientHellos that Config.UTLS accepts.
func Hellos() []string {
	names := []string{ownHello}
	for name := range hellos {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// sessionsKept is how many TLS sessions a Front remembers for resumption. A
// server sends two to four a connection, each used once, and there are at most
// six connections.
const sessionsKept = 32

// A handshaker makes TLS connections to one server name. It is safe for
// concurrent use.
type handshaker struct {
	serverName string
	roots      *x509.CertPool
	hello      *utls.ClientHelloID // nil: crypto/tls
	sessions   tls.ClientSessionCache
	usessions  utls.ClientSessionCache
}

// newHandshaker returns a handshaker and the browser that it looks like.
func newHandshaker(name, serverName string, roots *x509.CertPool) (*handshaker, *browser, error) {
	h := &handshaker{serverName: serverName, roots: roots}
	if name == ownHello {
		h.sessions = tls.NewLRUClientSessionCache(sessionsKept)
		return h, &chrome, nil
	}
	if name == "" {
		name = "chrome"
	}
	known, ok := hellos[name]
	if !ok {
		return nil, nil, fmt.Errorf("utls: unknown name %q; accepted: %s", name, strings.Join(Hellos(), ", "))
	}
	h.hello = &known.id
	h.usessions = utls.NewLRUClientSessionCache(sessionsKept)
	return h, known.browser, nil
}

// handshake returns a TLS connection over conn and the protocol that ALPN
// chose, "" if none. On error conn is not closed.
//
// The records it writes are full from the first one on, as a browser's are:
// Go would start with small ones.
func (h *handshaker) handshake(ctx context.Context, conn net.Conn) (net.Conn, string, error) {
	if h.hello == nil {
		c := tls.Client(conn, &tls.Config{
			ServerName:                  h.serverName,
			RootCAs:                     h.roots,
			NextProtos:                  []string{"h2", "http/1.1"},
			ClientSessionCache:          h.sessions,
			DynamicRecordSizingDisabled: true,
		})
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, "", err
		}
		return c, c.ConnectionState().NegotiatedProtocol, nil
	}
	c := utls.UClient(conn, &utls.Config{
		ServerName:                  h.serverName,
		RootCAs:                     h.roots,
		ClientSessionCache:          h.usessions,
		OmitEmptyPsk:                true,
		DynamicRecordSizingDisabled: true,
	}, *h.hello)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, "", err
	}
	return c, c.ConnectionState().NegotiatedProtocol, nil
}
