package ptproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"turbotunnel/common/proxy"
	"turbotunnel/internal/scrub"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// quotedVariables are those whose values goptlib repeats in its error lines.
// It panics when such a line is not ASCII. Paths are not among them: they may
// hold any letter.
var quotedVariables = []string{
	"TOR_PT_MANAGED_TRANSPORT_VER",
	"TOR_PT_CLIENT_TRANSPORTS",
	"TOR_PT_SERVER_TRANSPORTS",
	"TOR_PT_SERVER_BINDADDR",
	"TOR_PT_SERVER_TRANSPORT_OPTIONS",
	"TOR_PT_ORPORT",
	"TOR_PT_EXTENDED_SERVER_PORT",
}

// HasParent tells whether a program that speaks the pluggable-transport
// protocol started this one.
func HasParent() bool { return os.Getenv("TOR_PT_MANAGED_TRANSPORT_VER") != "" }

// ClientSetup reads what tor asks of a client's transports and answers with
// VERSION, and PROXY DONE where a proxy is to be used. An error has been told
// to tor already; the program shows it to people, and ends.
func (p *Process) ClientSetup() (pt.ClientInfo, error) {
	if err := p.checkEnvironment(); err != nil {
		return pt.ClientInfo{}, err
	}
	info, err := pt.ClientSetup(nil)
	if err != nil {
		if info.MethodNames != nil {
			// goptlib prints no line for a TOR_PT_PROXY that it cannot parse.
			// Its error may quote the password, so say less.
			return info, p.proxyError(errors.New("TOR_PT_PROXY is not scheme://host:port"))
		}
		return info, err
	}
	if info.ProxyURL != nil {
		if err := proxy.Check(info.ProxyURL); err != nil {
			return info, p.proxyError(err)
		}
		pt.ProxyDone()
	}
	return info, nil
}

// ServerSetup reads what tor asks of a server's transports and answers with
// VERSION. An error has been told to tor already; the program shows it to
// people, and ends.
func (p *Process) ServerSetup() (pt.ServerInfo, error) {
	if err := p.checkEnvironment(); err != nil {
		return pt.ServerInfo{}, err
	}
	return pt.ServerSetup(nil)
}

// checkEnvironment refuses values that goptlib could not repeat.
func (p *Process) checkEnvironment() error {
	for _, name := range quotedVariables {
		if value := os.Getenv(name); scrub.ASCII(value) != value {
			return p.EnvError(fmt.Errorf("%s holds characters that are not printable ASCII: %+q", name, value))
		}
	}
	return nil
}

// MakeStateDir creates dir with mode 0700 where it does not exist. The programs
// write nowhere else. Whether they can is not asked here: one that finds its key
// in the folder needs to write nothing.
func MakeStateDir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist): // what would lead to a file is another error
		return fmt.Errorf("cannot make the state directory: it is a link that leads nowhere; see whether that has to be mounted first: %w", err)
	}
	return fmt.Errorf("cannot make the state directory: %w", err)
}
