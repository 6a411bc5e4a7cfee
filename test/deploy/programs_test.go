package deploy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"turbotunnel/test/proc"
	"turbotunnel/test/target"
)

// buildFlags are go build's. Tests under the race detector run programs under
// the race detector.
var buildFlags []string

// Both programs, built by TestMain.
var clientProgram, serverProgram string

// raceLog is the start of the names of the files to which programs built with
// the race detector write what it finds.
var raceLog string

// waitLimit bounds the wait for what takes seconds on an idle machine.
const waitLimit = time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		fmt.Println("no guide is tested with -short")
		return 0
	}
	dir, err := os.MkdirTemp("", "deploy")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for program, folder := range map[*string]string{&clientProgram: "client", &serverProgram: "server"} {
		*program = filepath.Join(dir, "turbotunnel-"+folder)
		args := append([]string{"build", "-o", *program}, buildFlags...)
		if out, err := exec.Command("go", append(args, "turbotunnel/"+folder)...).CombinedOutput(); err != nil {
			fmt.Printf("go build %s: %v\n%s", folder, err, out)
			return 1
		}
	}
	raceLog = filepath.Join(dir, "race")

	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Println(err)
		code = 1
	}
	races, err := filepath.Glob(raceLog + ".*")
	if err != nil {
		panic(err) // the pattern has no special characters
	}
	for _, name := range races {
		fmt.Println("a program has a data race:")
		fmt.Println(proc.Tail(name))
		code = 1
	}
	return code
}

// start starts a program in a folder that is kept when the test fails, and
// ends it with the test.
func start(t *testing.T, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	name := filepath.Base(cmd.Path)
	log, err := os.CreateTemp(folder(t), name+".")
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	cmd.Env = append(cmd.Environ(), "GORACE=log_path="+raceLog)
	p, err := proc.Start(name, log.Name(), cmd)
	if err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(p.Tail())
		}
	})
	return p
}

// folder is a new one.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deploy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("files kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

// listens starts a program and waits until it listens on addr.
func listens(t *testing.T, addr string, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	p := start(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	if err := p.Wait(ctx, "a listener on "+addr, func() error { return proc.Listening(addr) }); err != nil {
		t.Fatal(err)
	}
	return p
}

// await calls check until it returns nil.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// logged waits until what p prints matches pattern, and returns its group.
func logged(t *testing.T, p *proc.Process, pattern string) (group string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	await(t, fmt.Sprintf("%q", pattern), func() error {
		text, err := os.ReadFile(p.Log())
		if err != nil {
			return err
		}
		m := re.FindStringSubmatch(string(text))
		if m == nil {
			return fmt.Errorf("not in\n%s", text)
		}
		group = m[len(m)-1]
		return nil
	})
	return group
}

// addrs are n of 127.0.0.1 on which nobody listens.
func addrs(t *testing.T, n int) []string {
	t.Helper()
	ports, err := proc.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]string, n)
	for i, port := range ports {
		list[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return list
}

func addr(t *testing.T) string { return addrs(t, 1)[0] }

// startServer starts turbotunnel-server on listen, with its key in state.
func startServer(t *testing.T, listen, state, forward string, flags ...string) *proc.Process {
	t.Helper()
	args := append([]string{"-state-dir", state}, flags...)
	return listens(t, listen, exec.Command(serverProgram, append(args, listen, forward)...))
}

// key is what clients need, from a server's state folder.
func key(t *testing.T, state string) string {
	t.Helper()
	line, err := os.ReadFile(filepath.Join(state, "turbo_bridgeline.txt"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, ok := strings.Cut(strings.TrimSpace(string(line)), "key=")
	if !ok {
		t.Fatalf("no key in %q", line)
	}
	return key
}

// A client is a running turbotunnel-client.
type client struct {
	*proc.Process
	addr string
	http *http.Client // whose connections go through it
}

// startClient starts turbotunnel-client, which trusts the authorities in
// caFile.
func startClient(t *testing.T, caFile, url string, flags ...string) *client {
	t.Helper()
	c := &client{addr: addr(t)}
	cmd := exec.Command(clientProgram, append(flags, c.addr, url)...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+caFile)
	c.Process = listens(t, c.addr, cmd)
	transport := &http.Transport{
		DisableKeepAlives: true, // a stream for each request
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", c.addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	c.http = &http.Client{Transport: transport}
	return c
}

// startTarget starts where streams go.
func startTarget(t *testing.T) *target.Server {
	t.Helper()
	s, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A watch calls what it is told to when so many bytes have passed.
type watch struct {
	seen int64
	at   map[int64]func()
}

func (w *watch) Write(p []byte) (int, error) {
	w.seen += int64(len(p))
	for n, do := range w.at {
		if w.seen >= n {
			delete(w.at, n)
			do()
		}
	}
	return len(p), nil
}

// move moves size bytes each way, one after the other, checks all of them, and
// calls each of events in each direction when its share of them has passed.
func move(t *testing.T, to *target.Server, c *client, size int64, events map[float64]func()) {
	t.Helper()
	watching := func() *watch {
		w := &watch{at: make(map[int64]func())}
		for share, do := range events {
			w.at[int64(share*float64(size))] = do
		}
		return w
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitLimit)
	defer cancel()
	if err := to.Download(ctx, c.http, 1, size, watching()); err != nil {
		t.Fatalf("%v\n%s", err, c.Tail())
	}
	if err := to.Upload(ctx, c.http, 2, size, watching()); err != nil {
		t.Fatalf("%v\n%s", err, c.Tail())
	}
}

// writeCertificate makes a certificate for names in dir: cert.pem, which is to
// be trusted as it is, key.pem, and cdn.pem, which holds both.
func writeCertificate(t *testing.T, dir string, names ...string) (caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: names[0]},
		DNSNames:              names,
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true, // of itself
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	write(t, filepath.Join(dir, "cert.pem"), string(cert))
	write(t, filepath.Join(dir, "key.pem"), string(secret))
	write(t, filepath.Join(dir, "cdn.pem"), string(cert)+string(secret))
	return filepath.Join(dir, "cert.pem")
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
