package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/ptproc"

	"rsc.io/qr"
)

const (
	bridgeLineFile = "turbo_bridgeline.txt"

	// fingerprintFile is where tor says who it is: a nickname, and 40 digits. It is
	// beside the folder that tor gives to its transports.
	fingerprintFile = "fingerprint"

	// bridgeArgsMax is the size in bytes of the arguments of a bridge line that
	// tor can hand to a client: a SOCKS user name and password, less the byte that
	// fills an empty password (pt-spec, "Per-connection client arguments").
	bridgeArgsMax = 510

	// bridgePort is the port of the address in a bridge line. Nobody connects to it.
	bridgePort = 443
)

// A bridgeLine is what clients have to be told. Where something is not known, its
// text says in angle brackets what belongs there.
type bridgeLine struct {
	url, fronts, key string
	fingerprint      string // of tor; empty: not known
}

// fingerprint returns the one of the tor whose transports keep their state in dir,
// or nothing: tor has none yet, or it is not tor's folder.
func fingerprint(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), fingerprintFile))
	if err != nil {
		return ""
	}
	return string(bytes.ToUpper(hexFingerprint.Find(text)))
}

var hexFingerprint = regexp.MustCompile(`\b[0-9A-Fa-f]{40}\b`)

// address is one of the range for documentation (RFC 3849), since tor wants
// one and clients do not use it. It is made of the server's key, so that those who
// keep many bridges, such as tor's bridge database, can tell them apart.
func (l bridgeLine) address() netip.AddrPort {
	sum := sha256.Sum256([]byte("turbotunnel bridge address " + l.key))
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	copy(a[4:], sum[:])
	return netip.AddrPortFrom(netip.AddrFrom16(a), bridgePort)
}

// args are the arguments, as tor hands them to clients but for what it puts
// between them, which is as long.
func (l bridgeLine) args() string {
	args := "url=" + l.url
	if l.url == "" {
		args = "url=<URL>"
	}
	if l.fronts != "" {
		args += " fronts=" + l.fronts
	}
	return args + " key=" + l.key
}

func (l bridgeLine) String() string {
	who := l.fingerprint
	if who == "" {
		who = "<FINGERPRINT>"
	}
	return fmt.Sprintf("Bridge turbo %s %s %s", l.address(), who, l.args())
}

// check tells whether clients can use what is known.
func (l bridgeLine) check() error {
	var client tunnel.Config
	for _, set := range []struct{ name, value string }{{"url", l.url}, {"fronts", l.fronts}} {
		if set.value == "" {
			continue
		}
		for _, c := range []byte(set.value) {
			if c <= ' ' || c > '~' {
				return fmt.Errorf("-%s %+q holds a character that is not printable ASCII: percent-encode it", set.name, set.value)
			}
		}
		if err := client.Set(set.name, set.value); err != nil {
			return fmt.Errorf("-%s: %w", set.name, err)
		}
	}
	if n := len(l.args()); n > bridgeArgsMax {
		return fmt.Errorf("-url and -fronts are too long: with key= the arguments of the bridge line have %d bytes, and tor can hand over %d", n, bridgeArgsMax)
	}
	return nil
}

// write keeps the line in the folder dir. A file that says the same is left alone.
func (l bridgeLine) write(dir string) error {
	text := []byte(l.String() + "\n")
	if old, err := os.ReadFile(filepath.Join(dir, bridgeLineFile)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := writeWhole(dir, bridgeLineFile, text); err != nil {
		return fmt.Errorf("cannot write the bridge line: %w", err)
	}
	return nil
}

// readBridgeLine returns what a server has written into the folder dir, with the
// fingerprint that tor may have got since.
func readBridgeLine(dir string) (bridgeLine, error) {
	path := filepath.Join(dir, bridgeLineFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return bridgeLine{}, fmt.Errorf("%s is not there: start the server once, or name its folder with -state-dir", path)
	}
	if err != nil {
		return bridgeLine{}, err
	}
	l := bridgeLine{fingerprint: fingerprint(dir)}
	for word := range strings.FieldsSeq(string(text)) {
		if l.fingerprint == "" && hexFingerprint.FindString(word) == word {
			l.fingerprint = word // as somebody has filled it in
		}
		switch name, value, _ := strings.Cut(word, "="); name {
		case "url":
			l.url = strings.TrimSuffix(value, "<URL>")
		case "fronts":
			l.fronts = value
		case "key":
			l.key = value
		}
	}
	if l.key == "" {
		return bridgeLine{}, fmt.Errorf("%s holds no bridge line: delete it, and start the server once", path)
	}
	return l, nil
}

// printBridgeLine answers to -bridge-line, and returns the exit code. Flags
// override what the server was started with last.
func printBridgeLine(p *ptproc.Process, set settings) int {
	if set.stateDir == "" {
		set.stateDir = os.Getenv("TOR_PT_STATE_LOCATION")
	}
	if set.stateDir == "" {
		p.Say("-bridge-line needs -state-dir: for tor's bridge that is pt_state in tor's DataDirectory")
		return 2
	}
	l, err := readBridgeLine(set.stateDir)
	if err == nil {
		if set.url != "" {
			l.url = set.url
		}
		if set.fronts != "" {
			l.fronts = set.fronts
		}
		err = l.check()
	}
	var code *qr.Code
	if err == nil && set.qr {
		code, err = qr.Encode(l.String(), qr.L)
	}
	if err != nil {
		p.Say("%v", err)
		return 1
	}
	p.Print(l.String() + "\n")
	if code != nil {
		p.Print(drawQR(code))
	}
	if l.url == "" {
		p.Say("the line lacks url=, without which clients cannot use it: give -url")
	}
	return 0
}

// quiet is how many light squares there have to be around a QR code.
const quiet = 4

// drawQR draws a code for a terminal, light on dark, two rows of squares a line.
func drawQR(code *qr.Code) string {
	light := func(x, y int) bool { return !code.Black(x, y) } // beyond the edge nothing is black
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := light(x, y), light(x, y+1); {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
