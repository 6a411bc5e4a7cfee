package faults

import (
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"turbotunnel/test/cdn"
	"turbotunnel/test/middlebox"
	"turbotunnel/test/netpath"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

var (
	seed = flag.Uint64("seed", 1, "what the middleboxes' dice are made of")
	long = flag.Bool("long", false, "run what takes minutes, too")
)

const (
	// atOnce is how many tests run at once: they mostly wait.
	atOnce = "100"

	// bridges is how many faults happen to one client at once. Each is a bridge
	// of its own, of which a client uses 32 (internal/socks/pool.go); more than these
	// need the processor.
	bridges = 8
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", atOnce)
	os.Exit(programs.Main(m))
}

// A rig is a server, a client, and what they connect.
type rig struct {
	server, client *proc.Process
	serverAddr     string
	serverArgs     []string
	socks          string // of the client
	engine         string
	key            string
	cert           tls.Certificate
	target         net.Listener
	limit          time.Duration // what streams may take
	free           chan struct{} // a token for each fault that may happen now

	mu      sync.Mutex
	waiting map[uint64]chan *net.TCPConn // who dialled, by what he says first; guarded by mu
	numbers uint64                       // guarded by mu
}

// newRig starts both programs.
func newRig(t *testing.T, engine string, server, client *exec.Cmd) *rig {
	t.Helper()
	r := &rig{engine: engine, serverAddr: programs.Addr(t), waiting: make(map[uint64]chan *net.TCPConn), free: make(chan struct{}, bridges), limit: limit}
	var err error
	if r.target, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() { r.accept(&accepting) })
	t.Cleanup(func() {
		r.target.Close()
		accepting.Wait()
	})
	dir := programs.Folder(t)
	caFile := filepath.Join(dir, "ca.pem")
	if r.cert, err = cdn.WriteCA(caFile); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	r.serverArgs = []string{"-state-dir", state, "-trusted-proxies", "127.0.0.0/8", "-unsafe-logging"}
	server.Args = append(server.Args, r.serverArgs...)
	server.Args = append(server.Args, r.serverAddr, r.target.Addr().String())
	r.server = programs.Listen(t, r.serverAddr, server)
	r.key = programs.Key(t, state)
	client.Env = append(client.Environ(), "SSL_CERT_FILE="+caFile,
		"TOR_PT_MANAGED_TRANSPORT_VER=1", "TOR_PT_CLIENT_TRANSPORTS=turbo", "TOR_PT_STATE_LOCATION="+programs.Folder(t))
	r.client = programs.Start(t, client)
	r.socks = programs.Logged(t, r.client, `CMETHOD turbo socks5 (\S+)`)
	return r
}

// startRig starts both programs as they are.
func startRig(t *testing.T, engine string) *rig {
	t.Helper()
	return newRig(t, engine, exec.Command(programs.Server), exec.Command(programs.Client))
}

// accept gives each connection of the server to who has made it.
func (r *rig) accept(group *sync.WaitGroup) {
	for {
		c, err := r.target.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			c.SetDeadline(time.Now().Add(r.limit))
			var number [8]byte
			if _, err := io.ReadFull(c, number[:]); err != nil {
				c.Close()
				return
			}
			r.mu.Lock()
			waits := r.waiting[binary.BigEndian.Uint64(number[:])]
			r.mu.Unlock()
			select {
			case waits <- c.(*net.TCPConn): // of nobody: never ready
			default:
				c.Close()
			}
		})
	}
}

// A scene is a session with a middlebox in its way.
type scene struct {
	*rig
	dice *middlebox.Dice
	box  *middlebox.Box
	path *netpath.Path
	old  atomic.Bool // the middlebox speaks HTTP/1.1 only
	args []string    // of the bridge line
}

// A variant is how a client is set and what the middlebox speaks.
type variant struct {
	mode  string
	old   bool // HTTP/1.1 only
	start bool // the fault is there before the session
}

func (v variant) String() string {
	text := v.mode
	if v.old {
		text += " over HTTP/1.1"
	}
	if v.start {
		text += " from the start"
	}
	return text
}

// rtt is of the path between client and middlebox.
const rtt = 10 * time.Millisecond

// newScene puts a middlebox before the server, for a session of its own.
func (r *rig) newScene(t *testing.T, v variant) *scene {
	t.Helper()
	r.free <- struct{}{}
	t.Cleanup(func() { <-r.free })
	origin := &url.URL{Scheme: "http", Host: r.serverAddr}
	s := &scene{rig: r, dice: middlebox.NewDice(*seed), box: middlebox.New(origin, middlebox.Habits{})}
	s.old.Store(v.old)
	both := &tls.Config{Certificates: []tls.Certificate{r.cert}, NextProtos: []string{"h2", "http/1.1"}}
	old := &tls.Config{Certificates: both.Certificates, NextProtos: []string{"http/1.1"}}
	config := both.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if s.old.Load() {
			return old, nil
		}
		return both, nil
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: s.box, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		web.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		web.Close()
		<-served
		s.box.Close()
	})
	if s.path, err = netpath.New(netpath.Config{RTT: rtt}, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.path.Close)
	s.args = []string{
		"url=https://" + cdn.Front + "/x", "addr=" + s.path.Addr(), "key=" + r.key,
		"engine=" + r.engine, "mode=" + v.mode,
	}
	return s
}

// limit bounds the wait for what takes seconds.
const limit = 2 * time.Minute

// maxUser is the longest user name of a SOCKS request, in bytes (RFC 1929).
const maxUser = 255

// open makes a stream, which has both ends in this process.
func (s *scene) open() (*pair, error) {
	s.mu.Lock()
	s.numbers++
	number := s.numbers
	accepted := make(chan *net.TCPConn, 1)
	s.waiting[number] = accepted
	s.mu.Unlock()
	user, password := strings.Join(s.args, ";"), "\x00"
	if len(user) > maxUser {
		user, password = user[:maxUser], user[maxUser:]
	}
	dialer, err := proxy.SOCKS5("tcp", s.socks, &proxy.Auth{User: user, Password: password}, nil)
	if err != nil {
		return nil, err
	}
	c, err := dialer.Dial("tcp", "192.0.2.3:80") // the address means nothing
	if err != nil {
		return nil, fmt.Errorf("the SOCKS request: %w", err)
	}
	c.SetDeadline(time.Now().Add(s.limit))
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil {
		c.Close()
		return nil, err
	}
	select {
	case far := <-accepted:
		return &pair{near: c.(*net.TCPConn), far: far}, nil
	case <-time.After(limit):
		c.Close()
		return nil, fmt.Errorf("the stream does not reach its destination within %v", limit)
	}
}
