package front

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"

	utls "github.com/refraction-networking/utls"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// A Recording is what a browser has sent, by which its look is made again: a file
// that utls=file:PATH names. test/fingerprint/record writes it.
type Recording struct {
	// Browser is its name and version, for people.
	Browser string `json:"browser"`

	// First and Resumed are ClientHellos, whole TLS records: one of a connection
	// without an earlier one, and one that offers to resume a session of TLS 1.3.
	First   []byte `json:"first"`
	Resumed []byte `json:"resumed"`

	HTTP2 RecordedHTTP2 `json:"http2"`

	// Head2 and Head1 are the fields of a script's POST to its own site over HTTP/2
	// and HTTP/1.1, in their order: name, colon, space, value.
	Head2 []string `json:"head2"`
	Head1 []string `json:"head1"`
}

// RecordedHTTP2 is what tells one browser's HTTP/2 from another's.
type RecordedHTTP2 struct {
	Settings     [][2]uint32 `json:"settings"`      // numbers and values, in their order
	Window       uint32      `json:"window"`        // increment of the connection's first WINDOW_UPDATE, in bytes
	StreamWindow uint32      `json:"stream_window"` // that of the one after each request's head; 0: none
	Weight       uint8       `json:"weight"`        // of a request, as it is in the frame
	Exclusive    bool        `json:"exclusive"`     // the flag of that name
	InRow        bool        `json:"in_row"`        // each request depends on the newest one under way
	Feeds        bool        `json:"feeds"`         // a script may send a body that is written bit by bit
}

const (
	// filePrefix begins the name of a recording in a list of looks.
	filePrefix = "file:"

	// maxRecording is the limit on a recording in bytes. Those of 2026 are of 8 KB.
	maxRecording = 64 << 10

	// maxFields is how many header fields a recording may have, and maxField how
	// long one of them may be in bytes. Browsers send twenty, of 120 bytes.
	maxFields = 64
	maxField  = 1 << 10
)

// recorded is a look made of a Recording. It is constant.
type recorded struct {
	browser  browser
	hellos   [2][]byte // the first one, and the one that resumes
	shuffles bool      // each hello has an order of extensions of its own
	encrypts bool      // both have a place for an encrypted one
}

// builtIn is the look of a recording that is part of the program. What is wrong with
// one, a test says.
func builtIn(data []byte) *recorded {
	r, err := parseRecording(data)
	if err != nil {
		panic(err)
	}
	return r
}

// recordingIn reads the recording in a file of this computer.
func recordingIn(path string) (*recorded, error) {
	data, err := readRecording(path)
	if err == nil {
		var r *recorded
		if r, err = parseRecording(data); err == nil {
			return r, r.check()
		}
	}
	return nil, err
}

// isRemote tells whether a path may be one of another computer: Windows takes either
// slash, and has names for devices and for shares that begin with \\ or \??\.
func isRemote(path string) bool {
	path = strings.ReplaceAll(path, "/", `\`)
	return strings.HasPrefix(path, `\\`) || strings.HasPrefix(path, `\??\`)
}

// readRecording reads a file no further than a recording may go. Whoever writes a
// bridge line must not make its reader connect to another computer, or wait.
func readRecording(path string) ([]byte, error) {
	switch {
	case isRemote(path):
		return nil, errors.New("a file of another computer; accepted: one of this computer")
	case strings.ContainsAny(path, " \t"):
		return nil, errors.New("a path with a space, which cannot stand in a bridge line")
	}
	switch info, err := os.Stat(path); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case info.Size() > maxRecording:
		return nil, fmt.Errorf("%d bytes; a recording has at most %d", info.Size(), maxRecording)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecording))
}

// parseRecording makes a look of a recording. What of a ClientHello uTLS cannot
// make again is seen by check only.
func parseRecording(data []byte) (*recorded, error) {
	var rec Recording
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // of a later version, and not to be left out in silence
	if err := decoder.Decode(&rec); err != nil {
		return nil, fmt.Errorf("not a recording: %w", err)
	}
	r := &recorded{hellos: [2][]byte{rec.First, rec.Resumed}}
	var err error
	if r.browser, err = rec.http(); err != nil {
		return nil, err
	}
	var orders [2][]uint16
	r.encrypts = true
	for i, hello := range r.hellos {
		if orders[i], err = extensionsOf(hello); err != nil {
			return nil, fmt.Errorf("%s ClientHello: %w", [2]string{"first", "resumed"}[i], err)
		}
		r.encrypts = r.encrypts && slices.Contains(orders[i], extECH)
	}
	if !slices.Contains(orders[1], extPSK) {
		return nil, errors.New("resumed ClientHello: offers no session")
	}
	r.shuffles = !sameOrder(orders[0], orders[1])
	return r, nil
}

// Numbers of TLS extensions (IANA's registry).
const (
	extPSK = 41
	extECH = 0xfe0d
)

// isGREASE tells whether v is a value that stands for nothing (RFC 8701).
func isGREASE(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// extensionsOf are the numbers of the extensions of a ClientHello that is a whole TLS
// record (RFC 8446 sections 5.1 and 4.1.2), in their order.
func extensionsOf(record []byte) ([]uint16, error) {
	var kind uint8
	var version uint16
	var message, body, extensions, skipped cryptobyte.String
	s := cryptobyte.String(record)
	if !s.ReadUint8(&kind) || kind != 22 || !s.ReadUint16(&version) || !s.ReadUint16LengthPrefixed(&message) || !s.Empty() ||
		!message.ReadUint8(&kind) || kind != 1 || !message.ReadUint24LengthPrefixed(&body) || !message.Empty() ||
		!body.Skip(2+32) || !body.ReadUint8LengthPrefixed(&skipped) || !body.ReadUint16LengthPrefixed(&skipped) ||
		!body.ReadUint8LengthPrefixed(&skipped) || !body.ReadUint16LengthPrefixed(&extensions) || !body.Empty() {
		return nil, errors.New("not a whole TLS record of one")
	}
	var numbers []uint16
	for !extensions.Empty() {
		var number uint16
		if !extensions.ReadUint16(&number) || !extensions.ReadUint16LengthPrefixed(&skipped) {
			return nil, errors.New("extensions cut short")
		}
		if slices.Contains(numbers, number) {
			return nil, fmt.Errorf("extension %d twice", number)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// sameOrder tells whether what two lists have in common has the same order in both.
func sameOrder(a, b []uint16) bool {
	common := func(list, other []uint16) []uint16 {
		return slices.DeleteFunc(slices.Clone(list), func(v uint16) bool { return isGREASE(v) || !slices.Contains(other, v) })
	}
	return slices.Equal(common(a, b), common(b, a))
}

// spec makes a ClientHello as the browser's next one would be: what is drawn by lot
// is drawn anew, and all else is as recorded.
func (r *recorded) spec(resumes bool) (*utls.ClientHelloSpec, error) {
	message := r.hellos[0]
	if resumes {
		message = r.hellos[1]
	}
	f := utls.Fingerprinter{AllowBluntMimicry: true, RealPSKResumption: true}
	spec, err := f.FingerprintClientHello(slices.Clone(message)) // parts of it stand in the spec
	if err != nil {
		return nil, err
	}
	boring := len(spec.CipherSuites) > 0 && isGREASE(spec.CipherSuites[0])
	for i, e := range spec.Extensions {
		switch e := e.(type) {
		case *utls.SignatureAlgorithmsExtension:
			n := utls.SignatureScheme(rand.IntN(16)<<4 | 0xa)
			for i, s := range e.SupportedSignatureAlgorithms {
				if isGREASE(uint16(s)) {
					e.SupportedSignatureAlgorithms[i] = n<<8 | n // uTLS draws the other ones
				}
			}
		case *utls.GREASEEncryptedClientHelloExtension:
			spec.Extensions[i] = emptyECH(boring, e.CandidatePayloadLens)
		}
	}
	if r.shuffles {
		spec.Extensions = utls.ShuffleChromeTLSExtensions(spec.Extensions)
	}
	return spec, nil
}

// emptyECH is an encrypted_client_hello that encrypts nothing. What is drawn by lot
// in it does not show in one recording: BoringSSL, which begins its ciphers with
// GREASE, draws the size, and NSS the cipher.
func emptyECH(boring bool, sizes []uint16) utls.TLSExtension {
	if boring {
		return utls.BoringGREASEECH()
	}
	const hkdfSHA256, aes128, chacha20 = 1, 1, 3 // RFC 9180 section 7
	return &utls.GREASEEncryptedClientHelloExtension{
		CandidateCipherSuites: []utls.HPKESymmetricCipherSuite{{KdfId: hkdfSHA256, AeadId: aes128}, {KdfId: hkdfSHA256, AeadId: chacha20}},
		CandidatePayloadLens:  sizes,
	}
}

// check tells whether uTLS makes the ClientHellos, and whether what a server may
// answer them can be used.
func (r *recorded) check() error {
	for i, which := range []string{"first", "resumed"} {
		spec, err := r.spec(i == 1)
		if err != nil {
			return fmt.Errorf("%s ClientHello: %w", which, err)
		}
		c := utls.UClient(nil, &utls.Config{ServerName: "front.invalid", OmitEmptyPsk: true}, utls.HelloCustom)
		if err = c.ApplyPreset(spec); err == nil {
			err = c.BuildHandshakeState()
		}
		if err != nil {
			return fmt.Errorf("%s ClientHello: %w", which, err)
		}
		hello := c.HandshakeState.Hello
		if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) || !slices.Equal(hello.AlpnProtocols, []string{"h2", "http/1.1"}) {
			return fmt.Errorf("%s ClientHello: not one of TLS 1.3 that offers h2 and http/1.1", which)
		}
	}
	return nil
}

// http is what the recording says of HTTP.
func (rec *Recording) http() (browser, error) {
	h2, err := rec.HTTP2.look()
	if err != nil {
		return browser{}, err
	}
	b := browser{overTLS: make(http.Header), feeds: rec.HTTP2.Feeds, h2: h2}
	var regular []string
	for _, f := range rec.Head2 {
		if name, isPseudo := strings.CutPrefix(f, ":"); isPseudo {
			name, _, _ = strings.Cut(name, ":")
			b.h2.pseudo = append(b.h2.pseudo, ":"+name)
		} else {
			regular = append(regular, f)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(b.h2.pseudo)), []string{":authority", ":method", ":path", ":scheme"}) {
		return browser{}, fmt.Errorf("head2: pseudo-headers %q", b.h2.pseudo)
	}
	head1, err := parseFields(rec.Head1)
	if err != nil {
		return browser{}, fmt.Errorf("head1: %w", err)
	}
	head2, err := parseFields(regular)
	if err != nil {
		return browser{}, fmt.Errorf("head2: %w", err)
	}
	for _, f := range head2 {
		switch name := strings.ToLower(f[0]); {
		case name == "user-agent":
			b.agent = f[1]
		case !ofRequest(name):
			b.overTLS.Set(name, f[1])
		}
	}
	if b.agent == "" {
		return browser{}, errors.New("head2: no User-Agent")
	}
	if err := checkCodings(b.overTLS.Get("Accept-Encoding")); err != nil {
		return browser{}, err
	}
	return b, b.setOrder(head1, head2)
}

// look is what the recording says of HTTP/2, without the pseudo-headers. Its limits
// are those within which our own HTTP/2 can keep what the browser promises.
func (h *RecordedHTTP2) look() (h2Look, error) {
	l := h2Look{
		connWindow: h.Window,
		weight:     http2.PriorityParam{Exclusive: h.Exclusive, Weight: h.Weight},
		inRow:      h.InRow,
		openBump:   h.StreamWindow,
	}
	pushes := true
	for _, s := range h.Settings {
		if s[0] >= 1<<16 || len(l.settings) >= maxFields {
			return h2Look{}, fmt.Errorf("settings: %d", s[0])
		}
		setting := http2.Setting{ID: http2.SettingID(s[0]), Val: s[1]}
		bad := setting.Valid() != nil
		switch setting.ID {
		case http2.SettingEnablePush:
			pushes = setting.Val != 0
		case http2.SettingHeaderTableSize:
			bad = bad || setting.Val > maxHeaderTable
		case http2.SettingMaxFrameSize:
			bad = bad || setting.Val > readFrame
		}
		if bad {
			return h2Look{}, fmt.Errorf("settings: %v cannot be kept", setting)
		}
		l.settings = append(l.settings, setting)
	}
	switch {
	case pushes:
		return h2Look{}, errors.New("settings: they allow pushes")
	case h.Window == 0 || h.Window > connWindow-defaultWindow:
		return h2Look{}, fmt.Errorf("window: %d; accepted: 1 to %d", h.Window, connWindow-defaultWindow)
	case l.initialWindow() > streamWindow || h.StreamWindow > uint32(streamWindow-l.initialWindow()):
		return h2Look{}, fmt.Errorf("a stream's window is above %d", streamWindow)
	}
	return l, nil
}

// parseFields returns the names and values of header fields, if they may stand in a
// request's head.
func parseFields(lines []string) ([][2]string, error) {
	if len(lines) > maxFields {
		return nil, fmt.Errorf("%d fields; accepted: %d", len(lines), maxFields)
	}
	var fields [][2]string
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) || len(line) > maxField {
			return nil, fmt.Errorf("field %.40q", line)
		}
		fields = append(fields, [2]string{name, value})
	}
	return fields, nil
}

// ofRequest tells of a header, in small letters, whether its value is that of one
// request or connection, so that only its place in a recording is the browser's.
func ofRequest(name string) bool {
	switch name {
	case "host", "connection", "content-length", "transfer-encoding", "trailer", "upgrade", "expect", "keep-alive",
		"pragma", "cache-control", "content-type", "content-encoding", "accept", "accept-language", "origin", "referer",
		"cookie", "authorization", "range", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest":
		return true
	}
	return strings.HasPrefix(name, "if-") || strings.HasPrefix(name, "proxy-")
}

// checkCodings tells whether answers can be read in all the codings of a list.
func checkCodings(list string) error {
	for _, name := range strings.Split(list, ",") {
		if _, known := codings[strings.TrimSpace(name)]; !known {
			return fmt.Errorf("head2: accept-encoding %.40q is not known here", name)
		}
	}
	return nil
}

// setOrder makes one order of the fields of both versions of HTTP. A browser for
// which there is none cannot be imitated.
func (b *browser) setOrder(h1, h2 [][2]string) error {
	place := func(name string) int {
		return slices.IndexFunc(b.order, func(known string) bool { return strings.EqualFold(known, name) })
	}
	for _, f := range h1 {
		if place(f[0]) < 0 {
			b.order = append(b.order, f[0])
		}
	}
	if place("content-length") < 0 || place("content-type") < 0 {
		return errors.New("head1: no Content-Length or Content-Type")
	}
	before := -1
	for _, f := range h2 {
		at := place(f[0])
		if at < 0 {
			at = before + 1
			b.order = slices.Insert(b.order, at, f[0])
			if name := strings.ToLower(f[0]); !ofRequest(name) {
				b.onlyH2 = append(b.onlyH2, name)
			}
		}
		if at < before {
			return fmt.Errorf("head2: %s stands elsewhere than in head1", f[0])
		}
		before = at
	}
	if place("transfer-encoding") < 0 {
		b.order = slices.Insert(b.order, place("content-length")+1, "Transfer-Encoding") // in its place
	}
	return nil
}
