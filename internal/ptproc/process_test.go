package ptproc

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// managed returns a Process that has only its stdout, and a function that ends
// it and returns what it wrote.
func managed(t *testing.T) (*Process, func() string) {
	var out bytes.Buffer
	p := &Process{program: "test", managed: true, stdout: newLineWriter(&out, nil)}
	before := pt.Stdout
	pt.Stdout = p.stdout
	t.Cleanup(func() { pt.Stdout = before })
	return p, func() string {
		p.stdout.Close()
		return out.String()
	}
}

// clearEnv removes the variables that tor sets.
func clearEnv(t *testing.T) {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "TOR_PT_") {
			t.Setenv(name, "") // so that it comes back
			os.Unsetenv(name)
		}
	}
}

func TestClientEnvironment(t *testing.T) {
	for _, c := range []struct {
		name, env, out string
		fails          bool
	}{
		{"nothing", "", "ENV-ERROR no TOR_PT_MANAGED_TRANSPORT_VER environment variable\n", true},
		{"future version", "TOR_PT_MANAGED_TRANSPORT_VER=2,3", "VERSION-ERROR no-version\n", true},
		{"several versions", "TOR_PT_MANAGED_TRANSPORT_VER=2,1 TOR_PT_CLIENT_TRANSPORTS=turbo", "VERSION 1\n", false},
		{"no transports", "TOR_PT_MANAGED_TRANSPORT_VER=1", "VERSION 1\nENV-ERROR no TOR_PT_CLIENT_TRANSPORTS environment variable\n", true},
		{"control characters", "TOR_PT_MANAGED_TRANSPORT_VER=1\x1b[2J", "ENV-ERROR TOR_PT_MANAGED_TRANSPORT_VER holds characters that are not printable ASCII: \"1\\x1b[2J\"\n", true},
		{"not ASCII", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=türbo", "ENV-ERROR TOR_PT_CLIENT_TRANSPORTS holds characters that are not printable ASCII: \"t\\u00fcrbo\"\n", true},
		{"a path may be anything", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_STATE_LOCATION=/é", "VERSION 1\n", false},
		{"socks5", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_PROXY=socks5://u:p@127.0.0.1:1080", "VERSION 1\nPROXY DONE\n", false},
		{"unknown proxy", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_PROXY=gopher://127.0.0.1:70", "VERSION 1\nPROXY-ERROR proxy type \"gopher\" is not supported; use http, socks4a or socks5\n", true},
		// Other proxies have a default port; the specification wants one to be named.
		{"proxy without port", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_PROXY=socks5://127.0.0.1", "VERSION 1\nPROXY-ERROR TOR_PT_PROXY is not scheme://host:port\n", true},
		{"proxy with empty port", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_PROXY=socks5://127.0.0.1:", "VERSION 1\nPROXY-ERROR TOR_PT_PROXY is not scheme://host:port\n", true},
		{"no proxy URL", "TOR_PT_MANAGED_TRANSPORT_VER=1 TOR_PT_CLIENT_TRANSPORTS=turbo TOR_PT_PROXY=é\x01", "VERSION 1\nPROXY-ERROR TOR_PT_PROXY is not scheme://host:port\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			clearEnv(t)
			for _, entry := range strings.Fields(c.env) {
				name, value, _ := strings.Cut(entry, "=")
				t.Setenv(name, value)
			}
			p, end := managed(t)
			_, err := p.ClientSetup()
			if (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			if out := end(); out != c.out {
				t.Errorf("stdout\n got %q\nwant %q", out, c.out)
			}
		})
	}
}

// Whatever is in the environment, the answer is a clean line, never a panic.
func FuzzServerEnvironment(f *testing.F) {
	f.Add("1", "turbo-127.0.0.1:0", "turbo", "turbo:a=b", "127.0.0.1:9", "")
	f.Add("1", "turbo-é", "turbo", "turbo:é", "é", "\n")
	f.Add("1", "turbo", "t", `\`, "::1:1", "x")
	f.Fuzz(func(t *testing.T, version, bind, transports, options, or, ext string) {
		clearEnv(t)
		for name, value := range map[string]string{
			"TOR_PT_MANAGED_TRANSPORT_VER":    version,
			"TOR_PT_SERVER_BINDADDR":          bind,
			"TOR_PT_SERVER_TRANSPORTS":        transports,
			"TOR_PT_SERVER_TRANSPORT_OPTIONS": options,
			"TOR_PT_ORPORT":                   or,
			"TOR_PT_EXTENDED_SERVER_PORT":     ext,
		} {
			if strings.ContainsRune(value, 0) {
				return // no environment can hold it
			}
			t.Setenv(name, value)
		}
		p, end := managed(t)
		_, err := p.ServerSetup()
		out := end()
		for _, r := range out {
			if r != '\n' && (r < ' ' || r > '~') {
				t.Fatalf("stdout holds %q: %q", r, out)
			}
		}
		if err != nil && !strings.Contains(out, "-ERROR ") {
			t.Fatalf("silent error %v", err)
		}
	})
}

func TestErrorsAreCleanLines(t *testing.T) {
	p, end := managed(t)
	hostile := errors.New("é\x00\nCMETHOD turbo socks5 192.0.2.1:1")
	if err := p.EnvError(hostile); err != hostile {
		t.Errorf("EnvError returned %v", err)
	}
	p.CmethodError("mé", hostile)
	p.SmethodError("mé", hostile)
	p.Status("turbo", "ADDRESS", "192.0.2.1:80", "ERRSTR", "say \"hé\"\n\\", "EMPTY", "")
	want := `ENV-ERROR \u00e9\x00; CMETHOD turbo socks5 192.0.2.1:1
CMETHOD-ERROR m\u00e9 \u00e9\x00; CMETHOD turbo socks5 192.0.2.1:1
SMETHOD-ERROR m\u00e9 \u00e9\x00; CMETHOD turbo socks5 192.0.2.1:1
STATUS TRANSPORT=turbo ADDRESS=192.0.2.1:80 ERRSTR="say \042h\303\251\042\012\134" EMPTY=""
`
	if out := end(); out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestMakeStateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "pt_état")
	if err := MakeStateDir(dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, error %v; want 0700", info.Mode(), err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MakeStateDir(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as directory: %v; want an error that names it", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("gone", link); err != nil {
		t.Fatal(err)
	}
	if err := MakeStateDir(link); err == nil || !strings.Contains(err.Error(), "mounted") || !strings.Contains(err.Error(), link) {
		t.Errorf("a link that leads nowhere: %v", err)
	}
}
