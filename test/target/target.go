// Package target is a web server for tests of what a tunnel does to traffic:
// it gives and takes any number of bytes that both sides can check.
package target

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Page is what the server shows at "/".
const Page = "<!doctype html>\n<title>It works</title>\n<p>This page came through the tunnel.</p>\n"

// headTimeout bounds the wait for a request's head. Bodies have no such bound:
// how fast they come is what a test wants to see.
const headTimeout = time.Minute

// A Server is a web server on a free port of 127.0.0.1.
// It is safe for concurrent use.
type Server struct {
	addr string
	http *http.Server
	done chan struct{}
}

// Start starts a server.
func Start() (*Server, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", page)
	mux.HandleFunc("GET /data", download)
	mux.HandleFunc("POST /hash", upload)
	s := &Server{
		addr: l.Addr().String(),
		http: &http.Server{Handler: mux, ReadHeaderTimeout: headTimeout},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		s.http.Serve(l)
	}()
	return s, nil
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return s.addr }

// Close ends the server and every connection to it.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

func page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	io.WriteString(w, Page)
}

// download answers /data?seed=S&size=N with the first N bytes of Data(S).
func download(w http.ResponseWriter, r *http.Request) {
	seed, err1 := strconv.ParseUint(r.FormValue("seed"), 10, 64)
	size, err2 := strconv.ParseInt(r.FormValue("size"), 10, 64)
	if err := errors.Join(err1, err2); err != nil || size < 0 {
		http.Error(w, "seed and size must be numbers", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	io.CopyN(w, Data(seed), size)
}

// upload answers with the number of bytes in the body and their SHA-256.
func upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	io.WriteString(w, answer(n, hash.Sum(nil)))
}

func answer(n int64, sum []byte) string {
	return fmt.Sprintf("%d %s\n", n, hex.EncodeToString(sum))
}

// Data returns an endless stream of bytes that does not compress and is always
// the same for a seed.
func Data(seed uint64) io.Reader {
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	return rand.NewChaCha8(key)
}

// answerLimit bounds what is read of an answer that should be short, in bytes.
const answerLimit = 64 << 10

// Get fetches the server's page through client and checks it.
func (s *Server) Get(ctx context.Context, client *http.Client) error {
	got, err := s.request(ctx, client, http.MethodGet, "/", nil)
	if err != nil {
		return err
	}
	if got != Page {
		return fmt.Errorf("the page came changed: %q", got)
	}
	return nil
}

// Download fetches size bytes of Data(seed) through client, checks each one
// when it comes, and writes what was checked to seen.
func (s *Server) Download(ctx context.Context, client *http.Client, seed uint64, size int64, seen io.Writer) error {
	url := fmt.Sprintf("http://%s/data?seed=%d&size=%d", s.addr, seed, size)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("download: %s", resp.Status)
	}
	n, err := io.Copy(io.MultiWriter(&checker{want: Data(seed)}, seen), resp.Body)
	if err != nil {
		return fmt.Errorf("download after %d of %d bytes: %w", n, size, err)
	}
	if n != size {
		return fmt.Errorf("download ended after %d of %d bytes", n, size)
	}
	return nil
}

// A checker is a writer that fails at the first byte that is not want's.
type checker struct {
	want io.Reader
	buf  []byte
	done int64
}

func (c *checker) Write(p []byte) (int, error) {
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	if _, err := io.ReadFull(c.want, c.buf[:len(p)]); err != nil {
		return 0, err
	}
	for i := range p {
		if p[i] != c.buf[i] {
			return i, fmt.Errorf("byte %d came changed", c.done+int64(i))
		}
	}
	c.done += int64(len(p))
	return len(p), nil
}

// Upload sends size bytes of Data(seed) through client, checks by their hash
// that all have arrived, and writes what was sent to seen as it goes.
func (s *Server) Upload(ctx context.Context, client *http.Client, seed uint64, size int64, seen io.Writer) error {
	hash := sha256.New()
	body := io.TeeReader(io.LimitReader(Data(seed), size), io.MultiWriter(hash, seen))
	got, err := s.request(ctx, client, http.MethodPost, "/hash", body)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if want := answer(size, hash.Sum(nil)); got != want {
		return fmt.Errorf("upload came changed: bytes and SHA-256 are %q, want %q", got, want)
	}
	return nil
}

func (s *Server) request(ctx context.Context, client *http.Client, method, path string, body io.Reader) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+path, body)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return string(text), nil
}
