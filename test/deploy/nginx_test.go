package deploy

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/guide"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

const siteName = "www.example.com"

// nginxMain is what a system's nginx.conf has around a file of
// sites-available, with the lines that deploy-nginx.md prints for it.
func nginxMain(t *testing.T) string {
	t.Helper()
	return guide.Printed(t, "deploy-nginx.md", "/etc/nginx/nginx.conf") + `
daemon off;
worker_processes 1;
worker_shutdown_timeout 1s;
error_log error.log;
pid nginx.pid;
http {
	access_log access.log;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	include site;
}
`
}

// adaptSite changes what a site's file for nginx has for a real machine.
func adaptSite(t *testing.T, text, dir, listen string, pairs ...string) string {
	t.Helper()
	const live = "/etc/letsencrypt/live/" + siteName + "/"
	return guide.Adapt(t, text, append([]string{
		"listen 443 ssl", "listen " + listen + " ssl",
		live + "fullchain.pem", filepath.Join(dir, "cert.pem"),
		live + "privkey.pem", filepath.Join(dir, "key.pem"),
	}, pairs...)...)
}

// startSite starts nginx with a site's file in dir.
func startSite(t *testing.T, dir, listen, site string) *proc.Process {
	t.Helper()
	programs.Write(t, filepath.Join(dir, "site"), site)
	return guide.StartNginx(t, dir, listen, nginxMain(t))
}

// fetch gets a page of the site at addr, whose certificate is in caFile.
func fetch(t *testing.T, addr, path string) (status int, body string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: siteName}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = siteName
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestNginx runs the file of deploy-nginx.md, and with the changes of which it
// says that they work as well.
func TestNginx(t *testing.T) {
	t.Parallel()
	for name, pairs := range map[string][]string{
		"as printed":                     nil,
		"HTTP/1.0 towards the server":    {"proxy_http_version 1.1;", "", `proxy_set_header Connection "";`, ""},
		"requests held back":             {"proxy_request_buffering off;", ""},
		"bodies of 1 MB at most":         {"client_max_body_size 0;", ""},
		"requests and answers held back": {"proxy_request_buffering off;", "", "proxy_buffering off;", ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			to := startTarget(t)
			origin, listen, state, dir := programs.Addr(t), programs.Addr(t), programs.Folder(t), programs.Folder(t)
			caFile := guide.WriteCertificate(t, dir, siteName)
			root := filepath.Join(dir, "html")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			programs.Write(t, filepath.Join(root, "index.html"), "the site")
			startServer(t, origin, state, to.Addr(), "-trusted-proxies", "127.0.0.1", "-decoy", root)
			startSite(t, dir, listen, nginxSite(t, dir, listen, origin, pairs...))
			if status, body := fetch(t, listen, "/"); status != 200 || body != "the site" {
				t.Errorf("/: %d %q", status, body)
			}
			c := startClient(t, caFile, "https://"+siteName+"/updates", "-key", programs.Key(t, state), "-addr", slow(t, listen).Addr())
			move(t, to, c, size, nil)
		})
	}
}

// TestNginxNamesNobody: with the server away, or too few connections, nginx would
// log who asked, and for which session.
func TestNginxNamesNobody(t *testing.T) {
	t.Parallel()
	one := func(t *testing.T, dir, listen, origin string) {
		programs.Write(t, filepath.Join(dir, "site"), nginxSite(t, dir, listen, origin))
	}
	for name, c := range map[string]struct {
		site   func(t *testing.T, dir, listen, origin string)
		pairs  []string // to change in nginx.conf
		status int
	}{
		"one server": {one, nil, http.StatusBadGateway},
		"several servers": {func(t *testing.T, dir, listen, origin string) {
			balancers[1].configure(t, dir, listen, []string{origin})
		}, nil, http.StatusBadGateway},
		// One is the listener's, one the client's.
		"too few connections": {one, []string{"worker_connections 16384;", "worker_connections 3;"}, http.StatusInternalServerError},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			listen, dir := programs.Addr(t), programs.Folder(t)
			guide.WriteCertificate(t, dir, siteName)
			c.site(t, dir, listen, programs.Addr(t))
			guide.StartNginx(t, dir, listen, guide.Adapt(t, nginxMain(t), c.pairs...))
			if status, _ := fetch(t, listen, "/updates/session"); status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			for _, log := range []string{"error.log", "access.log"} {
				text, err := os.ReadFile(filepath.Join(dir, log))
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(text), "/updates/") || strings.Contains(string(text), "client") {
					t.Errorf("%s says\n%s", log, text)
				}
			}
		})
	}
}
