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
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/link"
	"turbotunnel/test/middlebox"
	"turbotunnel/test/proc"
)

// bench holds what all scenarios share.
type bench struct {
	ctx     context.Context
	dir     string
	bin     string
	before  string // folder of the programs to compare with; empty: none
	seconds float64
	cert    tls.Certificate
	ca      string
	pool    *x509.CertPool
	load    *loadServer
	tunnels atomic.Int64 // made so far: each has files of its own
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
	b.load, err = newLoadServer()
	return err
}

// folder is where the programs are: those of the commit to compare with, or ours.
func (b *bench) folder(before bool) string {
	if before {
		return b.before
	}
	return b.bin
}

// rig is both programs on a link, with a middlebox between them if wanted:
// client -> link -> [middlebox] -> server -> load.
type rig struct {
	loader
	client, server *proc.Process
	clientPID      int
	serverPID      int
	link           *link.Link // nil on loopback
	box            *http.Server
	middlebox      *middlebox.Box // nil where there is none
	cuts           atomic.Int64   // connections that were reset
	stop           chan struct{}
	wg             sync.WaitGroup
}

func (b *bench) startTunnel(s scenario) (*rig, error) {
	t := &rig{stop: make(chan struct{})}
	if err := b.startPrograms(t, s); err != nil {
		t.close()
		return nil, err
	}
	if s.resets > 0 {
		t.wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					t.cuts.Add(int64(t.link.Reset(s.resets)))
				case <-t.stop:
					return
				}
			}
		})
	}
	return t, nil
}

func (b *bench) startPrograms(t *rig, s scenario) error {
	ports, err := proc.FreePorts(2)
	if err != nil {
		return err
	}
	serverAddr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	t.loader = loader{
		ctx: b.ctx, server: b.load,
		addr:  fmt.Sprintf("127.0.0.1:%d", ports[1]),
		limit: time.Duration((20 + 8*b.seconds) * float64(time.Second)),
	}
	dir := filepath.Join(b.dir, strconv.FormatInt(b.tunnels.Add(1), 10))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	args := []string{"-state-dir", filepath.Join(dir, "state")}
	if s.habits != nil {
		args = append(args, "-disable-tls")
	} else {
		args = append(args, "-tls-cert", filepath.Join(b.dir, "cert.pem"), "-tls-key", filepath.Join(b.dir, "key.pem"))
	}
	args = append(args, serverAddr, b.load.ln.Addr().String())
	cmd := exec.Command(filepath.Join(b.folder(s.before), "turbotunnel-server"), args...)
	logName := filepath.Join(dir, "server.log")
	if t.server, err = proc.Start("turbotunnel-server", logName, cmd); err != nil {
		return err
	}
	t.serverPID = cmd.Process.Pid
	if err := b.waitListen(serverAddr); err != nil {
		return fmt.Errorf("%w\n%s", err, proc.Tail(logName))
	}
	key, err := b.waitKey(logName)
	if err != nil {
		return err
	}
	end := serverAddr
	if s.habits != nil {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		end = ln.Addr().String()
		t.middlebox = middlebox.New(&url.URL{Scheme: "http", Host: serverAddr}, *s.habits)
		t.box = &http.Server{
			Handler:   t.middlebox,
			HTTP2:     largeWindows,
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.cert}},
			ErrorLog:  log.New(io.Discard, "", 0),
		}
		t.wg.Go(func() { t.box.ServeTLS(ln, "", "") }) //nolint:errcheck // close ends it
	}
	if s.link != (link.Config{}) {
		if t.link, err = link.New(s.link, end); err != nil {
			return err
		}
		end = t.link.Addr()
	}
	args = []string{"-key", key, "-addr", end}
	if s.mode != "" {
		args = append(args, "-mode", s.mode)
	}
	if s.engine != "" {
		args = append(args, "-engine", s.engine)
	}
	args = append(args, t.addr, "https://"+cdn.Front+"/bench")
	cmd = exec.Command(filepath.Join(b.folder(s.before), "turbotunnel-client"), args...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.ca)
	logName = filepath.Join(dir, "client.log")
	if t.client, err = proc.Start("turbotunnel-client", logName, cmd); err != nil {
		return err
	}
	t.clientPID = cmd.Process.Pid
	if err := b.waitListen(t.addr); err != nil {
		return fmt.Errorf("%w\n%s", err, proc.Tail(logName))
	}
	return nil
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

// waitKey finds the key in what the server says when it starts, which may be
// just after it has begun to listen.
func (b *bench) waitKey(logName string) (string, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		key, err := publicKey(logName)
		if err == nil || time.Now().After(deadline) || b.ctx.Err() != nil {
			return key, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// publicKey finds the key in a server's log.
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

func (t *rig) close() {
	close(t.stop)
	if t.client != nil {
		t.client.Stop() //nolint:errcheck // it has been measured
	}
	if t.server != nil {
		t.server.Stop() //nolint:errcheck // likewise
	}
	if t.box != nil {
		t.box.Close()
	}
	if t.link != nil {
		t.link.Close()
	}
	t.wg.Wait()
}

// bytes are what went over the link, each way.
func (t *rig) bytes() (up, down int64) {
	if t.link == nil {
		return 0, 0
	}
	return t.link.Bytes()
}

// requests are how many the middlebox saw, and how many bodies it lost.
func (t *rig) requests() (all, lost int64) {
	if t.middlebox == nil {
		return 0, 0
	}
	return t.middlebox.Requests()
}

// cpu is the CPU time that both programs have used.
func (t *rig) cpu() time.Duration { return cpuOf(t.clientPID) + cpuOf(t.serverPID) }

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
func peakMemory(pid int) int64 { return memoryOf(pid, "VmHWM:") }

// memoryOf is a line of a process' status (proc(5)), in bytes.
func memoryOf(pid int, name string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if after, ok := strings.CutPrefix(line, name); ok {
			kb, _ := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}
