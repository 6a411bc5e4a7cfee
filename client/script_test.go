package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/logtest"
	"turbotunnel/internal/socks/sockstest"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(leakCheck{m}, map[string]func(){program: main})
}

// leakCheck fails when the tests leave a goroutine behind.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	libraries := goleak.IgnoreCurrent() // goroutines that packages start on import
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(libraries); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// TestScripts runs the program as a person or tor does: testdata/*.txtar.
//
// Beside testscript's commands the scripts have
//
//	start [NAME=VALUE...] [ARG...]  start the program
//	out REGEXP, err REGEXP          wait until it has written that; $1 is the first group
//	signal NAME                     send TERM, INT or HUP
//	closestdin                      close its stdin
//	end CODE                        wait for its end; its output is in out.txt and err.txt then
//	socks ADDR ARGS CODE            make a SOCKS request and expect this reply, and an echo after a grant
//	hold ADDR ARGS                  the same, and keep the stream open
//	echo ADDR                       send a text to ADDR, end, expect it back
//	silent ADDR                     connect and say nothing
//
// and the variables SERVER, KEY: a server that echoes each stream; WEB: an
// ordinary web server; CLOSED: an address where nobody listens; BUSY: one where
// somebody does.
func TestScripts(t *testing.T) {
	key := tunnel.NewKey()
	server := echoServer(t, key)
	bench := echoServer(t, nil)
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	busy := strings.TrimPrefix(web.URL, "http://")
	closed := dialTCP(t, busy).LocalAddr().String() // nobody else can take it meanwhile
	// The subtests are parallel: what they share must outlive this function.
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("SERVER", server)
			env.Setenv("BENCH", bench)
			env.Setenv("KEY", key.Public())
			env.Setenv("WEB", web.URL)
			env.Setenv("CLOSED", closed)
			env.Setenv("BUSY", busy)
			s := &session{}
			env.Values["session"] = s
			env.Defer(s.kill)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":      inSession((*session).start),
			"out":        inSession((*session).out),
			"err":        inSession((*session).err),
			"signal":     inSession((*session).signal),
			"closestdin": inSession((*session).closeStdin),
			"end":        inSession((*session).end),
			"socks":      inSession((*session).socks),
			"hold":       inSession((*session).hold),
			"echo":       inSession((*session).echo),
			"silent":     inSession((*session).silent),
		},
	})
}

// echoServer starts a server of the tunnel that sends back what each stream
// brings, and returns its URL.
func echoServer(t *testing.T, key *tunnel.Key) string {
	t.Helper()
	server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
	web := httptest.NewServer(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			s, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer s.Close()
				if _, err := io.Copy(s, s); err == nil {
					s.CloseWrite()
				}
			}()
		}
	}()
	t.Cleanup(func() {
		server.Close()
		web.Close()
		<-done
	})
	return web.URL
}

// A session is the program run by a script.
type session struct {
	cmd            *exec.Cmd
	stdin          io.Closer
	stdout, stderr logtest.Buffer
	conns          []net.Conn
}

// inSession makes a script's command of a method.
func inSession(do func(*session, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command has no negation")
		}
		do(ts.Value("session").(*session), ts, args)
	}
}

func (s *session) start(ts *testscript.TestScript, args []string) {
	exe, err := exec.LookPath(program)
	ts.Check(err)
	var env []string
	for len(args) > 0 && regexp.MustCompile(`^[A-Z_]+=`).MatchString(args[0]) {
		env = append(env, args[0])
		args = args[1:]
	}
	s.cmd = exec.Command(exe, args...)
	s.cmd.Dir = ts.MkAbs(".")
	s.cmd.Env = append(childEnv(), env...)
	s.stdout, s.stderr = logtest.Buffer{}, logtest.Buffer{}
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.stderr
	s.stdin, err = s.cmd.StdinPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
}

func (s *session) out(ts *testscript.TestScript, args []string) { s.await(ts, &s.stdout, args) }
func (s *session) err(ts *testscript.TestScript, args []string) { s.await(ts, &s.stderr, args) }

func (s *session) await(ts *testscript.TestScript, where *logtest.Buffer, args []string) {
	re := regexp.MustCompile("(?m)" + args[0])
	deadline := time.Now().Add(patience)
	for {
		if m := re.FindStringSubmatch(where.String()); m != nil {
			if len(m) > 1 {
				ts.Setenv("1", m[1])
			}
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not come; stdout:\n%s\nstderr:\n%s", args[0], s.stdout.String(), s.stderr.String())
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *session) signal(ts *testscript.TestScript, args []string) {
	ts.Check(s.cmd.Process.Signal(map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": os.Interrupt, "HUP": syscall.SIGHUP}[args[0]]))
}

func (s *session) closeStdin(ts *testscript.TestScript, _ []string) { ts.Check(s.stdin.Close()) }

func (s *session) end(ts *testscript.TestScript, args []string) {
	guard := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	s.cmd.Wait()
	guard.Stop()
	for name, what := range map[string]*logtest.Buffer{"out.txt": &s.stdout, "err.txt": &s.stderr} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(what.String()), 0o600))
	}
	if code := strconv.Itoa(s.cmd.ProcessState.ExitCode()); code != args[0] {
		ts.Fatalf("exit code %s, want %s; stdout:\n%s\nstderr:\n%s", code, args[0], s.stdout.String(), s.stderr.String())
	}
	s.cmd = nil
}

// kill leaves nothing of the session behind.
func (s *session) kill() {
	for _, conn := range s.conns {
		conn.Close()
	}
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
}

func (s *session) dial(ts *testscript.TestScript, addr string) *net.TCPConn {
	conn, err := net.Dial("tcp", addr)
	ts.Check(err)
	s.conns = append(s.conns, conn)
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

func (s *session) socks(ts *testscript.TestScript, args []string) {
	conn := s.dial(ts, args[0])
	code, err := sockstest.Request(conn, args[1])
	ts.Check(err)
	if got := strconv.Itoa(int(code)); got != args[2] {
		ts.Fatalf("reply %s, want %s; stdout:\n%s\nstderr:\n%s", got, args[2], s.stdout.String(), s.stderr.String())
	}
	if code == 0 {
		ts.Check(checkEcho(conn))
	}
}

func (s *session) hold(ts *testscript.TestScript, args []string) {
	conn := s.dial(ts, args[0])
	code, err := sockstest.Request(conn, args[1])
	ts.Check(err)
	if code != 0 {
		ts.Fatalf("reply %d", code)
	}
}

func (s *session) echo(ts *testscript.TestScript, args []string) {
	ts.Check(checkEcho(s.dial(ts, args[0])))
}

func (s *session) silent(ts *testscript.TestScript, args []string) { s.dial(ts, args[0]) }

// checkEcho sends a text that is longer than a buffer, ends its direction, and
// expects the text back and an end.
func checkEcho(conn *net.TCPConn) error {
	text := strings.Repeat("to and fro ", 10000)
	failed := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, text)
		if err == nil {
			err = conn.CloseWrite()
		}
		failed <- err
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%d bytes came back, not the %d sent", len(got), len(text))
	}
	return <-failed
}

// childEnv is the environment of the program without what tor sets. The race
// detector would make it sleep for a second before it ends.
func childEnv() []string { return append(os.Environ(), "GORACE=atexit_sleep_ms=0") }

// command returns the program as a process that a Go test runs, with the
// environment that tor gives it.
func command(t *testing.T) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), program)
	if err := os.Symlink(self, exe); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(childEnv(), "TOR_PT_MANAGED_TRANSPORT_VER=1", "TOR_PT_CLIENT_TRANSPORTS="+method)
	return cmd
}

// awaitCmethod reads stdout up to CMETHODS DONE and returns the address of the
// SOCKS proxy.
func awaitCmethod(t *testing.T, stdout io.Reader) string {
	t.Helper()
	var addr string
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Sscanf(lines.Text(), "CMETHOD turbo socks5 %s", &addr)
		if lines.Text() == "CMETHODS DONE" {
			return addr
		}
	}
	t.Fatal("stdout ended before CMETHODS DONE")
	return ""
}

// Nobody has to read stdout and stderr: neither a full pipe nor one whose
// reader has gone stops the program.
func TestNobodyReads(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("reader gone %v", gone), func(t *testing.T) {
			cmd := command(t)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			addr := awaitCmethod(t, stdout)
			if gone {
				stdout.Close()
				stderr.Close()
			}
			// Each refusal is a few hundred bytes on both. A pipe holds 64 KB
			// and the program's queue as much again.
			args := "colour=" + strings.Repeat("x", 400)
			for range 600 {
				conn := dialTCP(t, addr)
				conn.SetDeadline(time.Now().Add(patience))
				if code, err := sockstest.Request(conn, args); err != nil || code == 0 {
					t.Fatalf("reply %d, %v", code, err)
				}
				conn.Close()
			}
			cmd.Process.Signal(syscall.SIGTERM)
			if !gone {
				// What was written is still there, and more was not kept.
				n, _ := io.Copy(io.Discard, stderr)
				if n > 64<<10+2*64<<10 {
					t.Errorf("%d bytes were kept for a reader", n)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("ended by %v", err)
			}
		})
	}
}

// Requests do not wait for each other, whether they share a session or not.
func TestSeveralRequestsAtOnce(t *testing.T) {
	key := tunnel.NewKey()
	args := "url=" + echoServer(t, key) + ";key=" + key.Public()
	cmd := command(t)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	addr := awaitCmethod(t, stdout)
	var all sync.WaitGroup
	for i := range 24 {
		conn := dialTCP(t, addr)
		conn.SetDeadline(time.Now().Add(patience))
		all.Go(func() {
			code, err := sockstest.Request(conn, args+[]string{"", ";engine=kcp", ";mode=poll"}[i%3])
			if err == nil && code == 0 {
				err = checkEcho(conn)
			}
			if err != nil || code != 0 {
				t.Errorf("request %d: reply %d, %v", i, code, err)
			}
		})
	}
	all.Wait()
}

// The program ends with the process that started it.
func TestParentsDeath(t *testing.T) {
	child := command(t)
	// The shell stays: it waits for its stdin, which is never closed here.
	parent := exec.Command("/bin/sh", "-c", `"$0" & read line`, child.Path)
	parent.Env = child.Env
	stdin, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	parent.Stdout = w
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	awaitCmethod(t, stdout)
	parent.Process.Kill()
	parent.Wait()
	// The pipe ends when the last process that has it for stdout does.
	stdout.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Errorf("the program outlives its parent: %v", err)
	}
}

// dialTCP connects to addr; the connection is closed with the test.
func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}
