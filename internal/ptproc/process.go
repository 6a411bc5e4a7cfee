// Package ptproc is what a pluggable transport owes to the process that runs
// it, beyond what goptlib does: when to end, how to speak on stdout and stderr
// without depending on a reader, how to log, and what to make of the
// environment.
//
// The life of a program under tor:
//
//	p := ptproc.Start("turbotunnel-client", true)
//	defer p.Close()
//	p.OpenLog(config)                  // where -log asks for it
//	info, err := p.ClientSetup()       // or ServerSetup
//	...                                // CMETHOD or SMETHOD lines, by goptlib
//	<-p.Stopping().Done()              // stop accepting
//	...                                // wait for streams, or p.Draining()
//
// Stdout belongs to the protocol: in a managed process, goptlib's lines and
// this package's go through one queue, each line whole.
package ptproc

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"turbotunnel/internal/scrub"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// A Process is the running program. There is one of it, since it takes over
// signals, stdout, stderr and stdin. Its methods are safe for concurrent use,
// except that OpenLog comes before the first use of Log, and Close last.
type Process struct {
	program string
	managed bool

	stdout, stderr *lineWriter
	logFile        *lineWriter // nil: the log goes to stderr
	file           *file       // below logFile
	log            *slog.Logger

	signals  chan os.Signal // of those that end the program
	hangups  chan os.Signal
	lifetime *lifetime

	mu       sync.Mutex
	onHangup []func() // guarded by mu
}

// Start begins the life of a program, whose name stands before what it says to
// people. A managed process speaks the pluggable-transport protocol on stdout
// and ends with its parent; another one ends by signals alone.
func Start(program string, managed bool) *Process {
	p := &Process{
		program: program,
		managed: managed,
		stdout:  newLineWriter(os.Stdout, nil),
		stderr:  newLineWriter(os.Stderr, droppedNote),
		// What finds no room is lost: a second signal to end has it, and a hangup that
		// comes while another one is waiting means nothing more.
		signals: make(chan os.Signal, 2),
		hangups: make(chan os.Signal, 1),
	}
	// Without this the runtime ends the program when the reader of stdout or
	// stderr has gone.
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(p.signals, os.Interrupt, syscall.SIGTERM)
	signal.Notify(p.hangups, syscall.SIGHUP)
	src := sources{signals: p.signals, hangups: p.hangups, hangup: p.hangup, exit: os.Exit}
	drain := drainTime
	if managed {
		drain = managedDrainTime
		pt.Stdout = p.stdout
		src.parent = os.Getppid
		if os.Getenv("TOR_PT_EXIT_ON_STDIN_CLOSE") == "1" {
			src.stdin = os.Stdin
		}
	}
	p.lifetime = newLifetime(src, drain)
	p.log = slog.New(newHandler(p.stderr, LogConfig{}, managed))
	return p
}

// OpenLog has the log written as config says. At SIGHUP its file is opened again.
func (p *Process) OpenLog(config LogConfig) error {
	if config.File == "" {
		p.log = slog.New(newHandler(p.stderr, config, p.managed))
		return nil
	}
	file, err := openFile(config.File)
	if err != nil {
		return fmt.Errorf("cannot open the log file: %w", err)
	}
	p.file = file
	p.logFile = newLineWriter(file, droppedNote)
	p.log = slog.New(newHandler(p.logFile, config, p.managed))
	p.OnHangup(func() {
		if err := file.reopen(); err != nil {
			p.log.Warn("the log file cannot be opened again: the old one stays in use", "err", err)
		}
	})
	return nil
}

// Log is the program's log. It shows levels from slog.LevelInfo up unless OpenLog
// was told otherwise, and in a managed process tells tor as well.
func (p *Process) Log() *slog.Logger { return p.log }

// Stopping is done when the program shall stop to accept: after SIGTERM or
// SIGINT, and in a managed process at the end of stdin where tor asked for
// that, and at the end of the parent. Its cause says which. A second signal
// ends the process at once, with exit code 1.
func (p *Process) Stopping() context.Context { return p.lifetime.stopping }

// Draining is done DrainTime after Stopping: what has not ended until then is
// to be cut. The process ends soon after, with exit code 0, if Close is not
// called.
func (p *Process) Draining() context.Context { return p.lifetime.draining }

// Managed tells whether the process speaks the pluggable-transport protocol.
func (p *Process) Managed() bool { return p.managed }

// DrainTime is how long streams may go on after the program was told to stop:
// 30 s, or 2 s in a managed process, unless SetDrainTime has said otherwise.
func (p *Process) DrainTime() time.Duration {
	return time.Duration(p.lifetime.drainTime.Load())
}

// ParseDrainTime reads what a flag says for SetDrainTime, such as 90s.
func ParseDrainTime(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no time such as 90s", text)
	}
	return d, nil
}

// SetDrainTime has an effect before the program is told to stop.
func (p *Process) SetDrainTime(d time.Duration) { p.lifetime.drainTime.Store(int64(d)) }

// OnHangup has f called at each SIGHUP, which never ends the program.
func (p *Process) OnHangup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onHangup = append(p.onHangup, f)
}

func (p *Process) hangup() {
	p.mu.Lock()
	all := slices.Clone(p.onHangup)
	p.mu.Unlock()
	for _, f := range all {
		f()
	}
}

// Say writes a line to stderr, for people: the program's name, a colon and the
// text, addresses included. It also goes to the log file, if there is one,
// where addresses are hidden as everywhere.
func (p *Process) Say(format string, args ...any) {
	text := oneLine(fmt.Sprintf(format, args...))
	fmt.Fprintf(p.stderr, "%s: %s\n", p.program, scrub.Line(text))
	if p.logFile != nil {
		p.log.Log(context.Background(), LevelNotice, text)
	}
}

// Print writes text to stdout as it is: the answer to -h or -version.
func (p *Process) Print(text string) { p.stdout.Write([]byte(text)) }

// EnvError tells tor, by ENV-ERROR, that the program cannot start, and returns
// err for people. In a process that is not managed it only returns it.
func (p *Process) EnvError(err error) error {
	p.line("ENV-ERROR", scrub.ASCII(oneLine(err.Error())))
	return err
}

// proxyError tells tor that its proxy cannot be used.
func (p *Process) proxyError(err error) error {
	pt.ProxyError(scrub.ASCII(oneLine(err.Error())))
	return err
}

// CmethodError tells tor that the client's transport called method does not
// start.
func (p *Process) CmethodError(method string, err error) {
	pt.CmethodError(scrub.ASCII(method), scrub.ASCII(oneLine(err.Error())))
}

// SmethodError tells tor that the server's transport called method does not
// start.
func (p *Process) SmethodError(method string, err error) {
	pt.SmethodError(scrub.ASCII(method), scrub.ASCII(oneLine(err.Error())))
}

// Status tells tor what the transport does, as a STATUS line, which tor hands
// on to whoever listens for PT_STATUS at its control port. pairs are keys and
// values in turn. A key is of letters, digits, dash and underscore; a value
// may hold anything, but addresses in it are not hidden. Nothing happens in a
// process that is not managed.
func (p *Process) Status(transport string, pairs ...string) {
	line := "TRANSPORT=" + statusValue(transport)
	for i := 0; i+1 < len(pairs); i += 2 {
		line += " " + pairs[i] + "=" + statusValue(pairs[i+1])
	}
	p.line("STATUS", line)
}

// statusValue writes v bare where it is a plain word, as the specification's
// examples have it, otherwise as a quoted string with octal escapes (CString,
// control-spec section 2.1.1).
func statusValue(v string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.:[]/", r)
	}
	if v != "" && !strings.ContainsFunc(v, func(r rune) bool { return !plain(r) }) {
		return v
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(v) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\%03o`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// line writes one line of the protocol. args holds printable ASCII only.
func (p *Process) line(keyword, args string) {
	if p.managed {
		fmt.Fprintf(p.stdout, "%s %s\n", keyword, args)
	}
}

// Close ends the process' goroutines, after the last lines were read or a
// second has passed without a reader for them. The one that waits for the end
// of stdin, for a reader or for a file ends with the process, as does the log file,
// which one of them may hold.
func (p *Process) Close() {
	signal.Stop(p.signals)
	signal.Stop(p.hangups)
	p.lifetime.close()
	p.stdout.Close()
	p.stderr.Close()
	if p.logFile != nil {
		p.logFile.Close()
	}
}
