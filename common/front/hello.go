package front

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	utls "github.com/refraction-networking/utls"
)

// A hello is a ClientHello to imitate, and the browser whose HTTP goes with it.
type hello struct {
	id       utls.ClientHelloID
	browser  *browser
	recorded *recorded // what the ClientHello of utls.HelloCustom is made of; else nil
}

// hellos maps what the argument utls= accepts to ClientHellos: of TLS 1.3, which
// offer both h2 and http/1.1. "none" is not in it.
//
// "chrome", "firefox" and the PSK ones offer a session of an earlier connection,
// which the others do only under TLS 1.2.
var hellos = map[string]hello{
	"chrome":            {utls.HelloCustom, &chrome, chromeRecorded},
	"chrome_100":        {utls.HelloChrome_100, &chrome, nil},
	"chrome_102":        {utls.HelloChrome_102, &chrome, nil},
	"chrome_106":        {utls.HelloChrome_106_Shuffle, &chrome, nil},
	"chrome_112_psk":    {utls.HelloChrome_112_PSK_Shuf, &chrome, nil},
	"chrome_115_pq":     {utls.HelloChrome_115_PQ, &chrome, nil},
	"chrome_115_pq_psk": {utls.HelloChrome_115_PQ_PSK, &chrome, nil},
	"chrome_120":        {utls.HelloChrome_120, &chrome, nil},
	"chrome_120_pq":     {utls.HelloChrome_120_PQ, &chrome, nil},
	"chrome_131":        {utls.HelloChrome_131, &chrome, nil},
	"chrome_133":        {utls.HelloChrome_133, &chrome, nil},
	"firefox":           {utls.HelloCustom, &firefox, firefoxRecorded},
	"firefox_99":        {utls.HelloFirefox_99, &firefox, nil},
	"firefox_102":       {utls.HelloFirefox_102, &firefox, nil},
	"firefox_105":       {utls.HelloFirefox_105, &firefox, nil},
	"firefox_120":       {utls.HelloFirefox_120, &firefox, nil},
	"ios":               {utls.HelloIOS_Auto, &safari, nil},
	"ios_13":            {utls.HelloIOS_13, &safari, nil},
	"ios_14":            {utls.HelloIOS_14, &safari, nil},
	"safari":            {utls.HelloSafari_16_0, &safari, nil}, // that of 17.0, too
	"safari_16_0":       {utls.HelloSafari_16_0, &safari, nil},
	"randomized":        {randomized, &chrome, nil},
}

// randomized is a ClientHello of no browser, which each Front makes up for itself:
// who blocks all that are known cannot have it on a list. It is always one of TLS
// 1.3, as every CDN speaks that, with ALPN, as the HTTP is a browser's.
var randomized = utls.ClientHelloID{
	Client:  utls.HelloRandomizedALPN.Client,
	Version: utls.HelloRandomizedALPN.Version,
	Weights: randomWeights(),
}

func randomWeights() *utls.Weights {
	w := utls.DefaultWeights
	w.TLSVersMax_Set_VersionTLS13 = 1
	w.Extensions_Append_ALPN = 1
	// A group of which there is no share may be asked for, and uTLS makes no share
	// of X25519MLKEM768 then.
	w.CurveIDs_Append_X25519 = 1
	w.KeyShare_Append_RandomGroups = 1
	return &w
}

// ownHello is the name of Go's own ClientHello, by crypto/tls.
const ownHello = "none"

// Hellos returns the names of the ClientHellos that Config.UTLS accepts, beside file:PATH.
func Hellos() []string {
	names := []string{ownHello}
	for name := range hellos {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// http is the browser whose HTTP goes with it, by its headers alone with Go's own.
func (h *hello) http() *browser {
	if h == nil {
		return &chrome
	}
	return h.browser
}

// encrypts tells whether it has a place for an encrypted one: a browser without ECH
// with it would be a browser that does not exist.
func (h *hello) encrypts() bool {
	if h == nil {
		return true
	}
	if h.recorded != nil {
		return h.recorded.encrypts
	}
	spec, err := utls.UTLSIdToSpec(h.id)
	return err == nil && slices.ContainsFunc(spec.Extensions, func(e utls.TLSExtension) bool {
		_, ok := e.(utls.EncryptedClientHelloExtension)
		return ok
	})
}

// hellosNamed returns the ClientHellos that the argument utls= names, nil for Go's
// own.
func hellosNamed(list string) ([]*hello, error) {
	if list == "" {
		list = "chrome"
	}
	var found []*hello
	var names []string
	for _, text := range strings.Split(list, ",") {
		name, path := helloName(text)
		if slices.Contains(names, name) {
			return nil, fmt.Errorf("utls: %.40q stands there twice", text)
		}
		names = append(names, name)
		if name == ownHello {
			found = append(found, nil)
			continue
		}
		if path != "" {
			recorded, err := recordingIn(path)
			if err != nil {
				return nil, fmt.Errorf("utls: %q: %w", text, err)
			}
			found = append(found, &hello{utls.HelloCustom, &recorded.browser, recorded})
			continue
		}
		known, ok := hellos[name]
		if !ok {
			return nil, fmt.Errorf("utls: unknown name %.40q; accepted: %s, %sPATH", text, strings.Join(Hellos(), ", "), filePrefix)
		}
		if known.id.Client == utls.HelloRandomizedALPN.Client {
			seed, err := utls.NewPRNGSeed()
			if err != nil {
				return nil, fmt.Errorf("utls: %w", err)
			}
			known.id.Seed = seed // the same for all connections: no program changes with each
		}
		found = append(found, &known)
	}
	return found, nil
}

// helloName is the name in hellos of what bridge lines of other transports write:
// HelloChrome_Auto, hellofirefox_120, HelloRandomizedALPN. A recording's name comes
// with the path of its file, which is "" for all others.
func helloName(text string) (name, path string) {
	text = strings.TrimSpace(text)
	if path, ok := strings.CutPrefix(text, filePrefix); ok && path != "" {
		return text, path
	}
	name = strings.ToLower(text)
	name = strings.TrimSuffix(strings.TrimPrefix(name, "hello"), "_auto")
	switch name {
	case "randomizedalpn":
		return "randomized", ""
	case "golang", "go":
		return ownHello, ""
	}
	return name, ""
}

// sessionsKept is how many TLS sessions a Front remembers for resumption: what
// Chrome keeps for one server (net/ssl/ssl_client_session_cache.h).
const sessionsKept = 2

// sessions are the newest TLS sessions of one server. Each is used once: a
// ticket that came twice would tell who watches that two connections belong
// together (RFC 8446 appendix C.4). It is safe for concurrent use.
type sessions[T any] struct {
	mu   sync.Mutex
	kept []*T // newest last
}

// Get takes out the newest session.
func (s *sessions[T]) Get(string) (*T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.kept)
	if n == 0 {
		return nil, false
	}
	newest := s.kept[n-1]
	s.kept = s.kept[:n-1]
	return newest, true
}

// Put keeps one more session. A nil one, which means that the one last taken was
// of no use, changes nothing.
func (s *sessions[T]) Put(_ string, session *T) {
	if session == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, session)
	if len(s.kept) > sessionsKept {
		s.kept = slices.Delete(s.kept, 0, 1)
	}
}

// An offer is the session, or nil, that one handshake may resume, and where it
// keeps new ones.
type offer struct {
	session *utls.ClientSessionState
	kept    *sessions[utls.ClientSessionState]
}

// Get takes out the session that the handshake may resume.
func (o *offer) Get(string) (*utls.ClientSessionState, bool) {
	s := o.session
	o.session = nil
	return s, s != nil
}

// Put keeps a session for later handshakes.
func (o *offer) Put(name string, s *utls.ClientSessionState) { o.kept.Put(name, s) }

// A handshaker makes TLS connections to one server name. It is safe for
// concurrent use.
type handshaker struct {
	serverName string
	roots      *x509.CertPool
	hello      *hello // nil: crypto/tls
	ech        *echKey
	sessions   sessions[tls.ClientSessionState]
	usessions  sessions[utls.ClientSessionState]
}

// handshake returns a TLS connection over conn and the protocol that ALPN
// chose, "" if none. On error conn is not closed.
//
// The records it writes are full from the first one on, as a browser's are:
// Go would start with small ones.
func (h *handshaker) handshake(ctx context.Context, conn net.Conn) (net.Conn, string, error) {
	var ech []byte
	if h.hello.encrypts() {
		ech = h.ech.current(ctx)
	}
	if h.hello == nil {
		c := tls.Client(conn, &tls.Config{
			EncryptedClientHelloConfigList: ech,
			ServerName:                     h.serverName,
			RootCAs:                        h.roots,
			NextProtos:                     []string{"h2", "http/1.1"},
			ClientSessionCache:             &h.sessions,
			DynamicRecordSizingDisabled:    true,
		})
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, "", err
		}
		return c, c.ConnectionState().NegotiatedProtocol, nil
	}
	session, _ := h.usessions.Get("")
	resumes := session != nil && session.Vers() == utls.VersionTLS13
	c := utls.UClient(conn, &utls.Config{
		EncryptedClientHelloConfigList: ech,
		ServerName:                     h.serverName,
		RootCAs:                        h.roots,
		ClientSessionCache:             &offer{session, &h.usessions},
		OmitEmptyPsk:                   true,
		DynamicRecordSizingDisabled:    true,
	}, h.hello.id)
	if h.hello.recorded != nil {
		spec, err := h.hello.recorded.spec(resumes)
		if err == nil {
			err = c.ApplyPreset(spec)
		}
		if err != nil {
			return nil, "", err
		}
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, "", err
	}
	// 13 KB, of which nothing is needed any more.
	c.HandshakeState, c.Extensions = utls.PubClientHandshakeState{}, nil
	return c, c.ConnectionState().NegotiatedProtocol, nil
}
