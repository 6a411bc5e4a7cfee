package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	"turbotunnel/test/middlebox"
	"turbotunnel/test/netpath"
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
	if b.pool, err = cdn.ReadCA(b.ca); err != nil {
		return err
	}
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

// rig is both programs on a path, with a middlebox between them if wanted:
// client -> path -> [middlebox] -> server -> load.
type rig struct {
	loader
	client, server *proc.Process
	netpath        *netpath.Path // nil on loopback
	box            *http.Server
	middlebox      *middlebox.Box // nil where there is none
	cuts           atomic.Int64   // connections that were reset
	stop           chan struct{}
	wg             sync.WaitGroup
}

func (b *bench) startRig(s scenario) (*rig, error) {
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
					t.cuts.Add(int64(t.netpath.Reset(s.resets)))
				case <-t.stop:
					return
				}
			}
		})
	}
	return t, nil
}

func (b *bench) startPrograms(t *rig, s scenario) error {
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return err
	}
	serverAddr := addrs[0]
	t.loader = loader{
		ctx: b.ctx, server: b.load,
		addr:  addrs[1],
		limit: time.Duration((20 + 8*b.seconds) * float64(time.Second)),
	}
	dir, err := b.newFolder()
	if err != nil {
		return err
	}
	flags := b.tlsFlags()
	if s.bare || s.habits != nil {
		flags = []string{"-disable-tls"} // which the middlebox ends, if there is one
	}
	var key string
	if t.server, key, err = b.startServer(b.folder(s.before), dir, serverAddr, flags...); err != nil {
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
	if s.netpath != (netpath.Config{}) {
		if t.netpath, err = netpath.New(s.netpath, end); err != nil {
			return err
		}
		end = t.netpath.Addr()
	}
	args := []string{"-key", key, "-addr", end}
	if s.mode != "" {
		args = append(args, "-mode", s.mode)
	}
	if s.engine != "" {
		args = append(args, "-engine", s.engine)
	}
	scheme := "https://"
	if s.bare {
		scheme = "http://"
	}
	args = append(args, t.addr, scheme+cdn.Front+"/bench")
	cmd := exec.Command(filepath.Join(b.folder(s.before), "turbotunnel-client"), args...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.ca)
	t.client, err = b.start(dir, t.addr, cmd)
	return err
}

// startLimit bounds the wait for what a program does at its start.
const startLimit = 10 * time.Second

// start starts a program, with its log in dir, that listens on addr.
func (b *bench) start(dir, addr string, cmd *exec.Cmd) (*proc.Process, error) {
	ctx, cancel := context.WithTimeout(b.ctx, startLimit)
	defer cancel()
	name := filepath.Base(cmd.Path)
	return proc.StartServing(ctx, name, filepath.Join(dir, name+".log"), cmd, addr)
}

// startServer starts turbotunnel-server of that folder on addr, in front of the
// load server and with its files in dir, and returns the key that clients need.
func (b *bench) startServer(folder, dir, addr string, flags ...string) (p *proc.Process, key string, err error) {
	flags = append(flags, "-state-dir", filepath.Join(dir, "state"), addr, b.load.ln.Addr().String())
	p, err = b.start(dir, addr, exec.Command(filepath.Join(folder, "turbotunnel-server"), flags...))
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(b.ctx, startLimit)
	defer cancel()
	// It may name the key just after it has begun to listen.
	err = p.Wait(ctx, "its key", func() (err error) {
		key, err = publicKey(p.Log())
		return err
	})
	if err != nil {
		return nil, "", errors.Join(err, p.Stop())
	}
	return p, key, nil
}

// tlsFlags are the server's flags for a certificate of its own.
func (b *bench) tlsFlags() []string {
	return []string{"-tls-cert", filepath.Join(b.dir, "cert.pem"), "-tls-key", filepath.Join(b.dir, "key.pem")}
}

// newFolder makes one for the files of a tunnel.
func (b *bench) newFolder() (string, error) {
	dir := filepath.Join(b.dir, strconv.FormatInt(b.tunnels.Add(1), 10))
	return dir, os.Mkdir(dir, 0o700)
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
	if t.netpath != nil {
		t.netpath.Close()
	}
	t.wg.Wait()
}

// bytes are what went over the path, each way.
func (t *rig) bytes() (up, down int64) {
	if t.netpath == nil {
		return 0, 0
	}
	return t.netpath.Bytes()
}

// requests are how many the middlebox saw, and how many bodies it lost.
func (t *rig) requests() (all, lost int64) {
	if t.middlebox == nil {
		return 0, 0
	}
	return t.middlebox.Requests()
}

// cpu is the CPU time that both programs have used.
func (t *rig) cpu() time.Duration { return cpuOf(t.client.ID()) + cpuOf(t.server.ID()) }

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
