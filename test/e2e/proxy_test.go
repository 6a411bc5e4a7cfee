package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/cdn"
)

// runPlainProxy starts a reverse proxy over HTTP/1.1 in front of origin, whose
// clients all come from the address client.
func runPlainProxy(t *testing.T, origin, client string) *cdn.CDN {
	t.Helper()
	c, err := cdn.Start(cdn.Config{Origin: origin, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sessionCount is how many different sessions the paths of requests named.
func sessionCount(c *cdn.CDN) int {
	sessions := map[string]bool{}
	for _, request := range c.Seen() {
		sessions[path.Base(request.Path)] = true
	}
	return len(sessions)
}

// An nginx is nginx as a CDN that can be used for domain fronting: it ends TLS,
// speaks HTTP/2 with clients and HTTP/1.1 with the origin, and routes by the
// Host header whatever the SNI said.
type nginx struct {
	addr   string
	caFile string // to be trusted by clients
	access string // its log: SNI, Host header, protocol and path of each request
}

// runNginx starts nginx in front of origin, whose clients all come from the
// address client, and writes to caFile whom they have to trust.
func runNginx(t *testing.T, origin, client, caFile string) *nginx {
	t.Helper()
	needs(t, "nginx")
	dir := logDir(t)
	c := &nginx{
		addr:   freeAddr(t),
		caFile: caFile,
		access: filepath.Join(dir, "access.log"),
	}
	cert, err := cdn.WriteCA(caFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := cdn.WritePEM(cert, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Fatal(err)
	}

	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // the folder is closed to others
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, user, c.addr, origin, cdn.Origin, cdn.Forged, client)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	runListener(t, c.addr, exec.Command("nginx", "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log")))
	return c
}

const nginxConf = `
daemon off;
worker_processes 1;
%[1]s
pid nginx.pid;
events { worker_connections 1024; }
http {
	log_format names '$ssl_server_name $http_host $server_protocol $request_uri';
	access_log access.log names;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	ssl_certificate cert.pem;
	ssl_certificate_key key.pem;
	upstream origin {
		server %[3]s;
		keepalive 32;
	}
	server {
		listen %[2]s ssl http2 default_server;
		return 404;
	}
	server {
		listen %[2]s ssl http2;
		server_name %[4]s;
		location / {
			proxy_pass http://origin;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For "%[5]s, %[6]s";
		}
	}
}
`

// checkLog checks that every request that the CDN saw had the front's name in
// its SNI, the origin's in its Host header, and came over HTTP/2.
func (c *nginx) checkLog(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(c.access)
	if err != nil {
		t.Fatal(err)
	}
	want := cdn.Front + " " + cdn.Origin + " HTTP/2.0 "
	requests := 0
	for line := range strings.Lines(string(text)) {
		requests++
		if !strings.HasPrefix(line, want) {
			t.Errorf("the CDN saw %q, want %q and a path", line, want)
			break
		}
	}
	if requests == 0 {
		t.Error("the CDN saw no request")
	}
	t.Logf("%d requests through the CDN", requests)
}

// TestNginx proves the CDN without a tunnel.
func TestNginx(t *testing.T) {
	heard := make(chan string, 1)
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard <- r.Proto + " " + r.Host + " " + r.Header.Get("X-Forwarded-For")
	})}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go origin.Serve(l)
	defer origin.Close()
	c := runNginx(t, l.Addr().String(), "192.0.2.1", filepath.Join(t.TempDir(), "ca.pem"))

	needs(t, "curl")
	cmd := exec.Command("curl", "-sS", "--cacert", c.caFile, "--connect-to", "::"+c.addr,
		"-H", "Host: "+cdn.Origin, "https://"+cdn.Front+"/path")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("curl: %v: %s", err, out)
	}
	if got, want := <-heard, "HTTP/1.1 "+cdn.Origin+" "+cdn.Forged+", 192.0.2.1"; got != want {
		t.Errorf("the origin heard %q, want %q", got, want)
	}
	c.checkLog(t)
}
