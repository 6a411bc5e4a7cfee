package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"turbotunnel/common/engines"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
	"turbotunnel/test/target"
)

// eachEngine runs a test with each engine.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range engines.Names() {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// tunnelTo starts both programs, so that what is dialed at the address
// returned reaches forward.
func tunnelTo(t *testing.T, forward, engine string) string {
	t.Helper()
	server, _ := runServer(t, forward)
	client, _ := runClient(t, "http://"+server, "-engine", engine)
	return client
}

// listen accepts connections at addr and serves each in a goroutine of its
// own, until the test ends.
func listen(t *testing.T, addr string, serve func(conn *net.TCPConn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(programs.WaitLimit))
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l
}

const anyPort = "127.0.0.1:0"

// echo sends back what comes, and ends when it ends.
func echo(conn *net.TCPConn) { io.Copy(conn, conn) }

// says checks that conn brings text next.
func says(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("%q came, want %q: %v", got[:n], text, err)
	}
}

// tell writes text to conn.
func tell(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// answers checks that addr is a way to an echo.
func answers(t *testing.T, addr string) {
	t.Helper()
	conn := dial(t, addr)
	defer conn.Close()
	tell(t, conn, "hello")
	says(t, conn, "hello")
}

// comesBack waits until addr is a way to an echo. The first connections may
// still be cut.
func comesBack(t *testing.T, addr string) {
	t.Helper()
	for limit := time.Now().Add(programs.WaitLimit); ; {
		conn := dial(t, addr)
		got := make([]byte, len("hello"))
		_, err := io.WriteString(conn, "hello")
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		conn.Close()
		if err == nil && string(got) == "hello" {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("no way through %s: %q, %v", addr, got, err)
		}
	}
}

// TestTwoArguments runs the two programs by exactly the two arguments that the
// reference implementations have.
func TestTwoArguments(t *testing.T) {
	t.Parallel()
	forward := listen(t, anyPort, echo).Addr().String()
	server, _ := runServer(t, forward)
	client, _ := runClient(t, "http://"+server)
	answers(t, client)
}

// TestChat holds a conversation in a real chat room, in which the server
// speaks first and everybody hears everybody.
func TestChat(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		room := programs.Addr(t)
		host, port, _ := net.SplitHostPort(room)
		programs.Listen(t, room, exec.Command("ncat", "-l", "--chat", host, port))
		addr := tunnelTo(t, room, engine)

		const guests = 3
		var hear [guests]*bufio.Scanner
		var say [guests]io.WriteCloser
		for i := range guests {
			host, port, _ := net.SplitHostPort(addr)
			cmd := exec.Command("ncat", host, port)
			var err error
			if say[i], err = cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			heard, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout = w
			programs.Start(t, cmd)
			w.Close()
			defer heard.Close()
			if err := heard.SetReadDeadline(time.Now().Add(programs.WaitLimit)); err != nil {
				t.Fatal(err)
			}
			hear[i] = bufio.NewScanner(heard)
			// The room greets a guest who has not said a word.
			hears(t, hear[i], "<announce>")
		}
		for i := range guests {
			line := fmt.Sprintf("guest %d says hello", i)
			if _, err := fmt.Fprintln(say[i], line); err != nil {
				t.Fatal(err)
			}
			for j := range guests {
				if j != i {
					hears(t, hear[j], line)
				}
			}
		}
	})
}

// hears waits for a line that has text.
func hears(t *testing.T, lines *bufio.Scanner, text string) {
	t.Helper()
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	t.Fatalf("%q was not heard: %v", text, lines.Err())
}

// TestSOCKS uses a real SOCKS proxy as the forward address, as a person would
// who wants to browse through the tunnel.
func TestSOCKS(t *testing.T) {
	t.Parallel()
	web, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	eachEngine(t, func(t *testing.T, engine string) {
		socks := programs.Addr(t)
		host, port, _ := net.SplitHostPort(socks)
		programs.Listen(t, socks, exec.Command("microsocks", "-i", host, "-p", port))
		addr := tunnelTo(t, socks, engine)

		out, err := exec.Command("curl", "-sS", "--max-time", "60",
			"--socks5-hostname", addr, "http://"+web.Addr()+"/").CombinedOutput()
		if err != nil || string(out) != target.Page {
			t.Errorf("curl: %v: %s", err, out)
		}

		dialer, err := proxy.SOCKS5("tcp", addr, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DialContext: dialer.(proxy.ContextDialer).DialContext}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 2 * programs.WaitLimit}
		var transfers sync.WaitGroup
		for seed := range uint64(4) {
			const size = 2e6
			transfers.Go(func() {
				if err := web.Download(t.Context(), client, seed, size, io.Discard); err != nil {
					t.Error(err)
				}
				if err := web.Upload(t.Context(), client, seed, size, io.Discard); err != nil {
					t.Error(err)
				}
			})
		}
		transfers.Wait()
	})
}

// TestServerSpeaksFirst needs a stream to reach the server before any byte.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	forward := listen(t, anyPort, func(conn *net.TCPConn) {
		io.WriteString(conn, "220 ready\r\n")
		io.Copy(io.Discard, conn)
	}).Addr().String()
	eachEngine(t, func(t *testing.T, engine string) {
		addr := tunnelTo(t, forward, engine)
		for range 3 {
			says(t, dial(t, addr), "220 ready\r\n")
		}
	})
}

// TestHalfClose ends one direction and uses the other for half a megabyte.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	big := make([]byte, 512<<10)
	if _, err := io.ReadFull(target.Data(1), big); err != nil {
		t.Fatal(err)
	}
	t.Run("client first", func(t *testing.T) {
		// Answers only after the end of the question.
		forward := listen(t, anyPort, func(conn *net.TCPConn) {
			question, err := io.ReadAll(conn)
			if err == nil && string(question) == "question" {
				conn.Write(big)
			}
		}).Addr().String()
		eachEngine(t, func(t *testing.T, engine string) {
			conn := dial(t, tunnelTo(t, forward, engine))
			tell(t, conn, "question")
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes came, want %d: %v", len(got), len(big), err)
			}
		})
	})
	t.Run("server first", func(t *testing.T) {
		received := make(chan []byte)
		forward := listen(t, anyPort, func(conn *net.TCPConn) {
			io.WriteString(conn, "your turn")
			conn.CloseWrite()
			got, _ := io.ReadAll(conn)
			received <- got
		}).Addr().String()
		eachEngine(t, func(t *testing.T, engine string) {
			conn := dial(t, tunnelTo(t, forward, engine))
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != "your turn" {
				t.Fatalf("%q came: %v", got, err)
			}
			if _, err := conn.Write(big); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if got := <-received; !bytes.Equal(got, big) {
				t.Errorf("%d bytes came after the half-close, want %d", len(got), len(big))
			}
		})
	})
}

// TestSessions counts the sessions of five connections at the same time.
func TestSessions(t *testing.T) {
	t.Parallel()
	forward := listen(t, anyPort, echo).Addr().String()
	const connections = 5
	for _, test := range []struct {
		engine   string
		sessions int
	}{
		{"kcp", connections},
		{"kcp-smux", 1},
		{"quic", 1},
		{"sctp", 1},
	} {
		t.Run(test.engine, func(t *testing.T) {
			server, _ := runServer(t, forward)
			front := runPlainProxy(t, server, "192.0.2.1")
			client, _ := runClient(t, "http://"+front.Addr(), "-engine", test.engine)
			var conns [connections]net.Conn
			for i := range conns {
				conns[i] = dial(t, client)
				tell(t, conns[i], "hello")
			}
			for _, conn := range conns {
				says(t, conn, "hello")
			}
			if got := sessionCount(front); got != test.sessions {
				t.Errorf("%d sessions for %d connections, want %d", got, connections, test.sessions)
			}
		})
	}
}

// TestPortInUse starts each program where another one listens.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	taken := listen(t, anyPort, echo).Addr().String()
	for name, cmd := range map[string]*exec.Cmd{
		"server": exec.Command(programs.Server, taken, "127.0.0.1:1"),
		"client": exec.Command(programs.Client, taken, "http://127.0.0.1:1"),
	} {
		p := programs.Start(t, cmd)
		select {
		case <-p.Exited():
		case <-time.After(programs.WaitLimit):
			t.Errorf("%s does not end", name)
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		var exit *exec.ExitError
		if !errors.As(p.Status(), &exit) || exit.ExitCode() < 1 {
			t.Errorf("%s: %v, want an exit code", name, p.Status())
		}
		if out := p.Tail(); !strings.Contains(out, "in use") || !strings.Contains(out, taken) {
			t.Errorf("%s does not say that %s is in use:\n%s", name, taken, out)
		}
	}
}

// refused checks that a connection to addr is reset. That may be so before the
// connection has been handed to its owner.
func refused(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, programs.WaitLimit)
	if err == nil {
		defer conn.Close()
		if err = conn.SetDeadline(time.Now().Add(programs.WaitLimit)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v; want a reset", err)
	}
}

// TestForwardRefuses has nobody at the forward address at first: a connection
// is reset, and the tunnel goes on.
func TestForwardRefuses(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		forward := programs.Addr(t)
		addr := tunnelTo(t, forward, engine)
		refused(t, addr)
		listen(t, forward, echo)
		answers(t, addr)
	})
}

// TestForwardHangs has the address that streams are forwarded to take no connections,
// and refuse none: a stream ends after some ten seconds, those that were there go on,
// and the next one works.
func TestForwardHangs(t *testing.T) {
	t.Parallel()
	for _, engine := range engines.Names() { // each waits, mostly
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp4", anyPort)
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			defer serving.Wait()
			defer l.Close()
			accept := func() bool {
				conn, err := l.Accept()
				if err == nil {
					serving.Go(func() {
						defer conn.Close()
						conn.SetDeadline(time.Now().Add(programs.WaitLimit))
						echo(conn.(*net.TCPConn))
					})
				}
				return err == nil
			}
			addr := tunnelTo(t, l.Addr().String(), engine)
			old := dial(t, addr)
			defer old.Close()
			tell(t, old, "before")
			accept()
			says(t, old, "before")

			for _, conn := range fill(t, l) {
				defer conn.Close()
			}
			began := time.Now()
			refused(t, addr)
			if took := time.Since(began); took < time.Second {
				t.Errorf("the stream ended after %v: the address did not hang", took)
			}
			tell(t, old, "meanwhile")
			says(t, old, "meanwhile")

			serving.Go(func() {
				for accept() {
				}
			})
			comesBack(t, addr)
		})
	}
}

// fill leaves l without room for connections that nobody accepts, and returns those
// that take it.
func fill(t *testing.T, l net.Listener) (conns []net.Conn) {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := syscall.Listen(int(fd), 0); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.DialTimeout("tcp4", l.Addr().String(), time.Second)
		if err != nil {
			return conns // it hangs
		}
		conns = append(conns, conn)
	}
}

// TestServerRestart ends the server under its clients: new connections work
// once it is back, without anything done to the client.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	forward := listen(t, anyPort, echo).Addr().String()
	eachEngine(t, func(t *testing.T, engine string) {
		addr, server := runServer(t, forward)
		client, _ := runClient(t, "http://"+addr, "-engine", engine)
		old := dial(t, client)
		tell(t, old, "before")
		says(t, old, "before")

		if err := server.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		programs.StartServer(t, addr, forward)
		comesBack(t, client)

		// What ran through the old server cannot go on, and must not hang.
		n, err := old.Read(make([]byte, 1))
		if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the old connection: %d bytes, %v; want its end", n, err)
		}
	})
}

// TestTerm ends both programs by SIGTERM in the middle of traffic: what is open
// goes on, and they end with it.
func TestTerm(t *testing.T) {
	t.Parallel()
	forward := listen(t, anyPort, func(conn *net.TCPConn) {
		io.Copy(conn, target.Data(1))
	}).Addr().String()
	eachEngine(t, func(t *testing.T, engine string) {
		server, serverProc := runServer(t, forward)
		client, clientProc := runClient(t, "http://"+server, "-engine", engine)
		conn := dial(t, client)
		more := func() {
			t.Helper()
			if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		more()
		for _, p := range []*proc.Process{clientProc, serverProc} {
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		more()
		conn.Close()
		for _, p := range []*proc.Process{clientProc, serverProc} {
			select {
			case <-p.Exited():
			case <-time.After(programs.WaitLimit):
				t.Error("does not end")
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
			if err := p.Status(); err != nil {
				t.Errorf("%v, want exit code 0\n%s", err, p.Tail())
			}
		}
	})
}
