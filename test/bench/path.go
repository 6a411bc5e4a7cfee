package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/link"
	"turbotunnel/test/middlebox"
	"turbotunnel/test/proc"
)

// scenario is a path and what is measured on it.
type scenario struct {
	name   string
	link   link.Config
	plain  bool // no TLS: HTTP/1.1
	habits *middlebox.Habits
	resets time.Duration // cut every connection of this age
	outage time.Duration // once, in the middle
	mode   string
	engine string
}

// bench holds what all scenarios share.
type bench struct {
	ctx     context.Context
	dir     string
	bin     string
	seconds float64
	cert    tls.Certificate
	ca      string
	pool    *x509.CertPool
	load    net.Listener
}

func (b *bench) setUp() error {
	b.ca = filepath.Join(b.dir, "ca.pem")
	cert, err := cdn.WriteCA(b.ca)
	if err != nil {
		return err
	}
	b.cert = cert
	if err := cdn.WritePEM(cert, filepath.Join(b.dir, "cert.pem"), filepath.Join(b.dir, "key.pem")); err != nil {
		return err
	}
	pem, err := os.ReadFile(b.ca)
	if err != nil {
		return err
	}
	b.pool = x509.NewCertPool()
	b.pool.AppendCertsFromPEM(pem)
	if b.load, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	go serveLoad(b.load)
	return nil
}

// raw is an HTTP/2 server and client with large windows on a link.
type raw struct {
	client *http.Client
	url    string
	link   *link.Link
	server *http.Server
}

var largeWindows = &http.HTTP2Config{
	MaxReceiveBufferPerConnection: 64 << 20,
	MaxReceiveBufferPerStream:     64 << 20,
	MaxConcurrentStreams:          250,
}

func (b *bench) startRaw(cfg link.Config, plain bool) (*raw, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &raw{server: &http.Server{
		HTTP2:     largeWindows,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.cert}},
		ErrorLog:  log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPost {
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, req.Body, make([]byte, 256<<10))
				return
			}
			n, _ := strconv.ParseInt(req.URL.RawQuery, 10, 64)
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
			for n > 0 {
				m, err := w.Write(block[:min(n, int64(len(block)))])
				if err != nil {
					return
				}
				n -= int64(m)
			}
		}),
	}}
	if r.link, err = link.New(cfg, ln.Addr().String()); err != nil {
		ln.Close()
		return nil, err
	}
	scheme := "https"
	if plain {
		scheme = "http"
		go r.server.Serve(ln)
	} else {
		go r.server.ServeTLS(ln, "", "")
	}
	r.url = scheme + "://" + cdn.Front + "/"
	addr := r.link.Addr()
	r.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: b.pool},
		ForceAttemptHTTP2: true,
		HTTP2:             largeWindows,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		},
	}}
	return r, nil
}

func (r *raw) close() {
	r.client.CloseIdleConnections()
	r.server.Close()
	r.link.Close()
}

// zeros is a body of n bytes.
type zeros int64

func (z *zeros) Read(p []byte) (int, error) {
	if *z == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), int64(*z)))
	*z -= zeros(n)
	return n, nil
}

func (r *raw) download(n int64) (time.Duration, error) {
	start := time.Now()
	resp, err := r.client.Get(r.url + "?" + strconv.FormatInt(n, 10))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	return time.Since(start), err
}

func (r *raw) upload(n int64) (time.Duration, error) {
	start := time.Now()
	z := zeros(n)
	req, err := http.NewRequest(http.MethodPost, r.url, &z)
	if err != nil {
		return 0, err
	}
	req.ContentLength = n
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return time.Since(start), err
}

// tunnel is both programs on a link, with a middlebox between them if wanted:
// client -> link -> [middlebox] -> server -> load.
type tunnel struct {
	client, server *proc.Process
	clientPID      int
	serverPID      int
	addr           string // where the client listens
	link           *link.Link
	box            *http.Server
	middlebox      *middlebox.Box
	stop           chan struct{}
}

func (b *bench) startTunnel(s scenario) (*tunnel, error) {
	t := &tunnel{stop: make(chan struct{})}
	ports, err := proc.FreePorts(2)
	if err != nil {
		return nil, err
	}
	serverAddr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	t.addr = fmt.Sprintf("127.0.0.1:%d", ports[1])
	state := filepath.Join(b.dir, "state")
	args := []string{"-state-dir", state}
	end := serverAddr
	if s.habits != nil || s.plain {
		args = append(args, "-disable-tls")
	} else {
		args = append(args, "-tls-cert", filepath.Join(b.dir, "cert.pem"), "-tls-key", filepath.Join(b.dir, "key.pem"))
	}
	args = append(args, serverAddr, b.load.Addr().String())
	cmd := exec.Command(filepath.Join(b.bin, "turbotunnel-server"), args...)
	logName := filepath.Join(b.dir, "server.log")
	if t.server, err = proc.Start("turbotunnel-server", logName, cmd); err != nil {
		return nil, err
	}
	t.serverPID = cmd.Process.Pid
	if err := b.waitListen(serverAddr); err != nil {
		t.close()
		return nil, fmt.Errorf("%w\n%s", err, proc.Tail(logName))
	}
	key, err := publicKey(logName)
	if err != nil {
		t.close()
		return nil, err
	}
	if s.habits != nil {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.close()
			return nil, err
		}
		end = ln.Addr().String()
		t.middlebox = middlebox.New(&url.URL{Scheme: "http", Host: serverAddr}, *s.habits)
		t.box = &http.Server{
			Handler:   t.middlebox,
			HTTP2:     largeWindows,
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.cert}},
			ErrorLog:  log.New(io.Discard, "", 0),
		}
		if s.plain {
			go t.box.Serve(ln)
		} else {
			go t.box.ServeTLS(ln, "", "")
		}
	}
	if t.link, err = link.New(s.link, end); err != nil {
		t.close()
		return nil, err
	}
	scheme := "https"
	if s.plain {
		scheme = "http"
	}
	args = []string{"-key", key, "-addr", t.link.Addr()}
	if s.mode != "" {
		args = append(args, "-mode", s.mode)
	}
	if s.engine != "" {
		args = append(args, "-engine", s.engine)
	}
	args = append(args, t.addr, scheme+"://"+cdn.Front+"/bench")
	cmd = exec.Command(filepath.Join(b.bin, "turbotunnel-client"), args...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.ca)
	logName = filepath.Join(b.dir, "client.log")
	if t.client, err = proc.Start("turbotunnel-client", logName, cmd); err != nil {
		t.close()
		return nil, err
	}
	t.clientPID = cmd.Process.Pid
	if err := b.waitListen(t.addr); err != nil {
		t.close()
		return nil, fmt.Errorf("%w\n%s", err, proc.Tail(logName))
	}
	if s.resets > 0 {
		go func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					t.link.Reset(s.resets)
				case <-t.stop:
					return
				}
			}
		}()
	}
	return t, nil
}

func (b *bench) waitListen(addr string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := proc.Listening(addr)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || b.ctx.Err() != nil {
			return fmt.Errorf("nobody listens on %s: %w", addr, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// publicKey finds the key in what the server says when it starts.
func publicKey(logName string) (string, error) {
	f, err := os.Open(logName)
	if err != nil {
		return "", err
	}
	defer f.Close()
	key := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, after, ok := strings.Cut(lines.Text(), "-key "); ok {
			key = strings.TrimSpace(after)
		}
	}
	if key == "" {
		return "", fmt.Errorf("the server named no key in %s", logName)
	}
	return key, nil
}

func (t *tunnel) close() {
	close(t.stop)
	if t.client != nil {
		t.client.Stop()
	}
	if t.server != nil {
		t.server.Stop()
	}
	if t.box != nil {
		t.box.Close()
	}
	if t.link != nil {
		t.link.Close()
	}
}

// cpu is the CPU time that both programs have used.
func (t *tunnel) cpu() time.Duration { return cpuOf(t.clientPID) + cpuOf(t.serverPID) }

// cpuOf reads a process' CPU time: fields 14 and 15 of its stat, in ticks of
// 10 ms (proc(5); Linux has USER_HZ 100 on every machine that Go runs on).
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// peakMemory is the most memory that a process has had resident, in bytes.
func peakMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if after, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}
