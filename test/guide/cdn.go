package guide

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// A Kind of CDN is a program with a file of deploy-cdn.md.
type Kind struct {
	Name   string
	Reload syscall.Signal

	// What to change in the file for the habits of CDNs: one that refuses
	// fronting, that holds whole requests back, that takes bodies of 1 MB,
	// and of 32 KB, at most. Sent is the header that tells the origin who the
	// client is, as a whole line.
	Strict, Buffers, Limits, Tight []string
	Sent                           string

	file  string
	start func(t *testing.T, dir, listen, text string) *proc.Process
	log   func(c *CDN) string // where it logs
}

// Nginx and Haproxy are the two kinds there are.
var (
	Nginx = &Kind{
		Name:    "nginx",
		Reload:  syscall.SIGHUP,
		Strict:  []string{"#if ($ssl_server_name", "if ($ssl_server_name"},
		Buffers: []string{"proxy_request_buffering off", "proxy_request_buffering on"},
		Limits:  []string{"client_max_body_size 0", "client_max_body_size 1m"},
		Tight:   []string{"client_max_body_size 0", "client_max_body_size 32k"},
		Sent:    "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
		file:    "cdn.conf",
		start:   StartNginx,
		log:     func(c *CDN) string { return filepath.Join(c.Dir, "cdn.log") },
	}
	Haproxy = &Kind{
		Name:    "haproxy",
		Reload:  syscall.SIGUSR2,
		Strict:  []string{"#http-request return status 421", "http-request return status 421"},
		Buffers: []string{"#option http-buffer-request", "option http-buffer-request"},
		Limits:  []string{"#http-request deny status 413", "http-request deny status 413"},
		Tight:   []string{"#http-request deny status 413", "http-request deny status 413", "gt 1048576", "gt 32768"},
		Sent:    "option forwardfor",
		file:    "cdn.cfg",
		start: func(t *testing.T, dir, listen, text string) *proc.Process {
			WriteHaproxy(t, dir, text)
			return StartHaproxy(t, dir, listen)
		},
		log: func(c *CDN) string { return c.Log() },
	}
	Kinds = []*Kind{Nginx, Haproxy}
)

// Claims is what to change in the file for a CDN all of whose clients come from
// client, and claim to come from [cdn.Forged].
func (k *Kind) Claims(client string) []string {
	said := cdn.Forged + ", " + client
	if k == Nginx {
		return []string{k.Sent, `proxy_set_header X-Forwarded-For "` + said + `";`}
	}
	return []string{k.Sent, `http-request set-header X-Forwarded-For "` + said + `"`}
}

// A CDN is one of deploy-cdn.md's, running.
type CDN struct {
	*proc.Process
	Kind   *Kind
	Addr   string // where it listens
	Dir    string
	CAFile string // for its clients

	text string // its configuration
}

// StartCDN starts a CDN in front of origin, with a certificate for name and with
// its file changed by pairs. It serves [cdn.Origin].
func StartCDN(t *testing.T, k *Kind, name, origin string, pairs ...string) *CDN {
	t.Helper()
	c := &CDN{Kind: k, Addr: programs.Addr(t), Dir: programs.Folder(t)}
	c.CAFile = WriteCertificate(t, c.Dir, name)
	c.text = Adapt(t, Printed(t, "deploy-cdn.md", k.file),
		append([]string{"127.0.0.1:8443", c.Addr, "127.0.0.1:8080", origin}, pairs...)...)
	c.Process = k.start(t, c.Dir, c.Addr, c.text)
	return c
}

// Restart starts the CDN anew, where it was, after its end.
func (c *CDN) Restart(t *testing.T) {
	t.Helper()
	c.Process = c.Kind.start(t, c.Dir, c.Addr, c.text)
}

// Requests are the lines of the CDN's log that are about requests for
// [cdn.Origin]: name in TLS, Host header, protocol, status, bytes up, bytes
// down, path. Those of haproxy are of its last start.
func (c *CDN) Requests(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile(c.Kind.log(c))
	if err != nil {
		t.Fatal(err)
	}
	var requests [][]string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == cdn.Origin {
			requests = append(requests, fields)
		}
	}
	return requests
}

// CheckRequests waits for a request, and checks that in each TLS named front,
// and that all came over HTTP/2, for paths that begin with path.
func (c *CDN) CheckRequests(t *testing.T, front, path string) {
	t.Helper()
	var requests [][]string
	programs.Await(t, "a request in the CDN's log", func() error {
		if requests = c.Requests(t); len(requests) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	for _, fields := range requests {
		if fields[0] != front || fields[2] != "HTTP/2.0" || !strings.HasPrefix(fields[len(fields)-1], path) {
			t.Fatalf("the CDN saw %q", fields)
		}
	}
	t.Logf("%d requests through the CDN", len(requests))
}
