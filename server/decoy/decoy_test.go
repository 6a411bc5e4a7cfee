package decoy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

var changed = time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC)

// newDecoy returns the decoy of spec, closed at the end of the test.
func newDecoy(t *testing.T, spec string) *Decoy {
	t.Helper()
	d, err := New(spec, changed, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// write makes files below dir; a name that ends with a slash is a folder.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, changed, changed); err != nil {
			t.Fatal(err)
		}
	}
}

// site is a folder with everything that a static site has.
func siteFolder(t *testing.T) string {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"index.html":           "<html>home</html>\n",
		"a.css":                "body{}\n",
		"b.js":                 "1;\n",
		"data":                 strings.Repeat("0123456789", 5000),
		"dir/index.html":       "<html>dir</html>\n",
		"two words/index.html": "x",
		"empty/":               "",
		".hidden":              "secret",
		".git/config":          "secret",
	})
	return dir
}

// nginx starts a real nginx that serves dir on a socket, whose path it returns.
func nginx(t *testing.T, dir string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		t.Skip("no nginx on this machine (Debian: apt install nginx-light)")
	}
	// Not t.TempDir: the name of a socket has at most 107 bytes.
	work, err := os.MkdirTemp("", "decoy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	socket := filepath.Join(work, "s")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := fmt.Sprintf(`%s daemon off; worker_processes 1; pid %[2]s/pid; error_log %[2]s/log;
		events { worker_connections 64; }
		http { server_tokens off; access_log off; absolute_redirect off; max_ranges 1;
			types { text/html html; text/css css; application/javascript js; }
			default_type application/octet-stream;
			client_body_temp_path %[2]s/1; proxy_temp_path %[2]s/2; fastcgi_temp_path %[2]s/3;
			uwsgi_temp_path %[2]s/4; scgi_temp_path %[2]s/5;
			server { listen unix:%[2]s/s; root %[3]s; index index.html; } }`, user, work, dir)
	if err := os.WriteFile(filepath.Join(work, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", work, "-e", filepath.Join(work, "log"), "-c", filepath.Join(work, "conf"))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx did not start: %s", out.String())
		}
	}
}

// cases are requests on which a static site and nginx must agree.
var cases = []struct {
	method, path string
	header       http.Header
}{
	{"GET", "/", nil},
	{"HEAD", "/", nil},
	{"GET", "/index.html", nil},
	{"GET", "/?q=1", nil},
	{"GET", "/nothing", nil},
	{"HEAD", "/nothing", nil},
	{"GET", "/nothing/", nil},
	{"POST", "/", nil},
	{"POST", "/nothing", nil},
	{"POST", "/nothing/", nil},
	{"POST", "/dir", nil},
	{"POST", "/empty/", nil},
	{"PUT", "/", nil},
	{"PUT", "/nothing", nil},
	{"DELETE", "/nothing/", nil},
	{"OPTIONS", "/", nil},
	{"FOO", "/", nil},
	{"GET", "/a.css", nil},
	{"GET", "/b.js", nil},
	{"GET", "/data", nil},
	{"GET", "/a.css/", nil},
	{"GET", "/a.css/x", nil},
	{"GET", "//a.css", nil},
	{"GET", "/dir/../a.css", nil},
	{"GET", "/%61.css", nil},
	{"GET", "/../a.css", nil},
	{"GET", "/dir/../../a.css", nil},
	{"GET", "/%2e%2e/a.css", nil},
	{"GET", "/a%00", nil},
	{"GET", "/" + strings.Repeat("n", 300), nil},
	{"GET", "/.", nil},
	{"GET", "/dir", nil},
	{"GET", "/dir/.", nil},
	{"GET", "/dir/..", nil},
	{"GET", "/dir?a=b", nil},
	{"GET", "/two%20words", nil},
	{"GET", "/dir/", nil},
	{"GET", "/empty", nil},
	{"GET", "/empty/", nil},
	{"GET", "/", http.Header{"If-Modified-Since": {"Fri, 01 Mar 2024 10:00:00 GMT"}}},
	{"GET", "/", http.Header{"If-Modified-Since": {"Sat, 01 Mar 2025 10:00:00 GMT"}}},
	{"GET", "/", http.Header{"If-Modified-Since": {"junk"}}},
	{"GET", "/", http.Header{"If-Unmodified-Since": {"Wed, 01 Mar 2023 10:00:00 GMT"}}},
	{"GET", "/", http.Header{"If-None-Match": {"*"}}},
	{"HEAD", "/", http.Header{"If-None-Match": {`"65e1a720-12"`}}},
	{"GET", "/", http.Header{"If-None-Match": {`"other"`}}},
	{"GET", "/", http.Header{"If-None-Match": {`*`}, "If-Modified-Since": {"Sat, 01 Mar 2025 10:00:00 GMT"}}},
	{"GET", "/", http.Header{"If-Match": {`"other"`}}},
	{"GET", "/data", http.Header{"Range": {"bytes=10-19"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=-5"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=49999-"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=50000-"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=junk"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=1-2,5-6"}}},
	{"GET", "/data", http.Header{"Range": {"bytes=1-2"}, "If-Range": {`"other"`}}},
	{"GET", "/nothing", http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"}}},
	{"GET", "/nothing", http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0"}}},
	{"GET", "/nothing", http.Header{"User-Agent": {"Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 6.0)"}}},
	{"GET", "/nothing", http.Header{"User-Agent": {"Opera/9.80 Chrome/1"}}},
	{"GET", "/dir", http.Header{"User-Agent": {"Chrome/120.0.0.0"}}},
}

// ask returns what a server that dial reaches answers to case i, as text.
// What net/http decides by itself is left out: Date, and Connection.
func ask(t *testing.T, c *http.Client, base string, i int) string {
	t.Helper()
	req, err := http.NewRequest(cases[i].method, base+cases[i].path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "site.example"
	for name, values := range cases[i].header {
		req.Header[name] = values
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "test")
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Date") == "" {
		t.Errorf("%s %s: no Date", cases[i].method, cases[i].path)
	}
	resp.Header.Del("Date")
	resp.Header.Del("Connection")
	var b strings.Builder
	fmt.Fprintln(&b, resp.StatusCode)
	_ = resp.Header.Write(&b)
	fmt.Fprintf(&b, "\n%s", body)
	return b.String()
}

// client reaches what listens on the socket of this path, whatever the URL.
func client(t *testing.T, socket string) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// serve runs d as the program does, with Go's own answers to OPTIONS * off.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.DisableGeneralOptionsHandler = true
	s.Start()
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.Client().Transport.(*http.Transport).DisableCompression = true
	return s
}

func TestFolderAnswersAsNginx(t *testing.T) {
	dir := siteFolder(t)
	theirs := client(t, nginx(t, dir))
	ours := serve(t, newDecoy(t, dir))
	for i, c := range cases {
		want := ask(t, theirs, "http://site.example", i)
		if got := ask(t, ours.Client(), ours.URL, i); got != want {
			t.Errorf("%s %s %v:\nnginx: %s\nours: %s", c.method, c.path, c.header, want, got)
		}
	}
}

func TestPlaceholderAnswersAsNginx(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"index.html": placeholderPage})
	theirs := client(t, nginx(t, dir))
	ours := serve(t, newDecoy(t, ""))
	for i, c := range cases {
		if c.path == "/data" && c.header == nil {
			continue
		}
		want := ask(t, theirs, "http://site.example", i)
		if got := ask(t, ours.Client(), ours.URL, i); got != want {
			t.Errorf("%s %s %v:\nnginx: %s\nours: %s", c.method, c.path, c.header, want, got)
		}
	}
}

// A proxied nginx, and the folder that it serves, cannot be told apart.
func TestSiteAnswersAsTheSite(t *testing.T) {
	dir := siteFolder(t)
	theirs := serve(t, newDecoy(t, dir))
	ours := serve(t, newDecoy(t, theirs.URL))
	for i, c := range cases {
		if strings.Contains(c.path, "..") || strings.Contains(c.path, "2e") {
			continue // the proxy itself refuses what climbs above the root
		}
		want := ask(t, theirs.Client(), theirs.URL, i)
		if got := ask(t, ours.Client(), ours.URL, i); got != want {
			t.Errorf("%s %s %v:\nsite: %s\nours: %s", c.method, c.path, c.header, want, got)
		}
	}
}

// HTTP/2 gets the answers that HTTP/1.1 gets.
func TestHTTP2AnswersAsHTTP1(t *testing.T) {
	ours := httptest.NewUnstartedServer(newDecoy(t, siteFolder(t)))
	ours.EnableHTTP2 = true
	ours.StartTLS()
	t.Cleanup(ours.Close)
	clients := map[int]*http.Client{}
	for _, major := range []int{1, 2} {
		tr := ours.Client().Transport.(*http.Transport).Clone()
		tr.DisableCompression = true
		tr.TLSClientConfig.NextProtos = nil // as Protocols has it
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetHTTP1(major == 1)
		tr.Protocols.SetHTTP2(major == 2)
		t.Cleanup(tr.CloseIdleConnections)
		clients[major] = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}}
	}
	for i, c := range cases {
		one, two := ask(t, clients[1], ours.URL, i), ask(t, clients[2], ours.URL, i)
		if one != two {
			t.Errorf("%s %s %v:\nHTTP/1.1: %s\nHTTP/2: %s", c.method, c.path, c.header, one, two)
		}
	}
}

func TestFolderKeepsItsSecrets(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"secret": "secret"})
	dir := siteFolder(t)
	for name, target := range map[string]string{
		"out":    filepath.Join(outside, "secret"),
		"outdir": outside,
		"up":     "../../../../../../../../etc/passwd",
		"inside": "a.css",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serve(t, newDecoy(t, dir))
	for _, path := range []string{
		"/out", "/outdir/secret", "/outdir", "/up", "/.hidden", "/.git/config", "/.git/", "/.git",
		"/dir/../.hidden", "/%2ehidden", "/fifo", "/fifo/",
	} {
		resp, err := s.Client().Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 404 || strings.Contains(string(body), "secret") {
			t.Errorf("%s: %s\n%s", path, resp.Status, body)
		}
	}
	resp, err := s.Client().Get(s.URL + "/inside")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("a link within the folder: %s", resp.Status)
	}
}

func TestSpecErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{
		"/does/not/exist", file, "ftp://site.example", "http://", "http://a b/", "https://u:p@site.example/", "http://site.example/?q", "http://site.example/#f",
	} {
		d, err := New(spec, changed, quiet)
		if err == nil {
			d.Close()
			t.Errorf("%q: no error", spec)
		} else if !strings.Contains(err.Error(), spec) {
			t.Errorf("%q: the error does not name it: %v", spec, err)
		}
	}
}

// The answer waits for the body, and the connection then serves the next
// request without the deadlines of this one.
func TestAnswersWhenTheBodyIsHere(t *testing.T) {
	for _, spec := range []string{"", siteFolder(t)} {
		d := newDecoy(t, spec)
		synctest.Test(t, func(t *testing.T) {
			conn := pipe(t, d)
			start := time.Now()
			br := bufio.NewReader(conn)
			io.WriteString(conn, "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1234")
			go func() {
				time.Sleep(bodyTimeout - time.Second)
				io.WriteString(conn, "5")
			}()
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 404 {
				t.Fatalf("answer: %v, %v", resp, err)
			}
			if took := time.Since(start); took != bodyTimeout-time.Second {
				t.Errorf("answered after %v", took)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			time.Sleep(2 * bodyTimeout)
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if resp, err = http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("next request: %v, %v", resp, err)
			}
		})
	}
}

// What is left of a body that is not HTTP is not taken for a request.
func TestBrokenBodyEndsTheConnection(t *testing.T) {
	d := newDecoy(t, "")
	synctest.Test(t, func(t *testing.T) {
		conn := pipe(t, d)
		go io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\njunk\r\nGET /again HTTP/1.1\r\nHost: a\r\n\r\n")
		all, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 400 ") || strings.Count(string(all), "HTTP/1.1 ") != 1 {
			t.Errorf("answers: %q, %v", all, err)
		}
	})
}

// A proxy's HTTP/2 connection has the requests of many: what one of them is refused
// does not end it.
func TestRefusalLeavesHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(newDecoy(t, ""))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	var conns []string
	for range 2 {
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(c httptrace.GotConnInfo) { conns = append(conns, c.Conn.LocalAddr().String()) },
		})
		req, err := http.NewRequestWithContext(trace, http.MethodPost, s.URL, struct{ io.Reader }{strings.NewReader("too much")})
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = maxBody + 1
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge || resp.ProtoMajor != 2 {
			t.Errorf("answer %s by %s", resp.Status, resp.Proto)
		}
	}
	if conns[0] != conns[1] {
		t.Error("the connection has ended")
	}
}

func TestRefusesLargeBody(t *testing.T) {
	d := newDecoy(t, "")
	r := httptest.NewRequest("POST", "/", nil)
	r.ContentLength = maxBody + 1
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if w.Code != 413 || !strings.Contains(w.Body.String(), "413 Request Entity Too Large") {
		t.Errorf("answer %d: %s", w.Code, w.Body)
	}
}

func FuzzFolder(f *testing.F) {
	for _, c := range cases {
		f.Add(c.path)
	}
	f.Add("/dir/../.hidden")
	dir := f.TempDir()
	root := filepath.Join(dir, "root")
	for name, text := range map[string]string{"secret": "SECRET", "root/.hidden": "SECRET", "root/open": "open"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink("../secret", filepath.Join(root, "link")); err != nil {
		f.Fatal(err)
	}
	d, err := New(root, changed, quiet)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { d.Close() })
	f.Fuzz(func(t *testing.T, path string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		if strings.Contains(w.Body.String(), "SECRET") {
			t.Errorf("%q shows a secret", path)
		}
		if w.Header().Get("Server") != "nginx" || w.Header().Get("X-Content-Type-Options") != "" {
			t.Errorf("%q: headers %v", path, w.Header())
		}
	})
}

// pipe serves d over one in-memory connection, whose client's end it returns.
func pipe(t *testing.T, d *Decoy) net.Conn {
	near, far := net.Pipe()
	ln := &oneConn{conn: make(chan net.Conn, 1)}
	ln.conn <- far
	s := &http.Server{Handler: d}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln)
	}()
	t.Cleanup(func() {
		near.Close()
		s.Close()
		<-done
	})
	return near
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn chan net.Conn
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conn; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { l.once.Do(func() { close(l.conn) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// A body that trickles, and a reader that does not read, do not hold a
// connection for ever.
func TestSlowPeersAreCut(t *testing.T) {
	dir := siteFolder(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		d := newDecoy(t, "")
		conn := pipe(t, d)
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
		if answer, err := io.ReadAll(conn); err != nil || len(answer) > 0 {
			t.Errorf("got %q, %v", answer, err)
		}
		if d := time.Since(start); d != bodyTimeout {
			t.Errorf("a body that does not come was waited for %v, want %v", d, bodyTimeout)
		}
		if n := d.Stats(); n != (Stats{BodiesCut: 1}) {
			t.Errorf("counted is %+v", n)
		}

		d = newDecoy(t, dir)
		conn = pipe(t, d)
		io.WriteString(conn, "GET /data HTTP/1.1\r\nHost: a\r\n\r\n")
		time.Sleep(sendTimeout + time.Nanosecond) // of the bubble's clock
		synctest.Wait()
		if answer, err := io.ReadAll(conn); err != nil || len(answer) > 16<<10 {
			t.Errorf("%d bytes came after %v, %v", len(answer), sendTimeout, err)
		}
		if n := d.Stats(); n != (Stats{AnswersCut: 1}) {
			t.Errorf("counted is %+v", n)
		}

		// A reader that is slow, but reads, gets all of it.
		conn = pipe(t, newDecoy(t, dir))
		io.WriteString(conn, "GET /data HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		var got int
		for buf := make([]byte, 4<<10); ; {
			n, err := conn.Read(buf)
			got += n
			if err != nil {
				break
			}
			time.Sleep(sendTimeout / 20)
		}
		if got < 50_000 {
			t.Errorf("a slow reader got %d bytes", got)
		}
	})
}
