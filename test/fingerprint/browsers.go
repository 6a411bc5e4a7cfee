package fingerprint

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
)

// The requests that a browser and our client make: posts of opaque octets to their
// own site, on two connections of which the second one has some at once.
var (
	firstPaths  = []string{"/a", "/b", "/last"}
	secondPaths = []string{"/c", "/wait1", "/wait2", "/wait3", endPath}
)

const bodySize = 2000 // bytes

// page makes those requests.
const page = `<!doctype html><title>x</title><link rel=icon href=data:><script>
const post = (path, more) => fetch(path, {method: 'POST', body: new Uint8Array(2000), ...more});
const record = async () => {
	await post('/a')
	await post('/b')
	await post('/last')
	await post('/c')
	await Promise.all([post('/wait1'), post('/wait2'), post('/wait3')])
}
record().then(() => post('/done'))
</script>`

// fullPage makes them, too, and two more before the last one: one that has all headers
// which a script's may have, and one only where a body may be written bit by bit.
var fullPage = strings.Replace(page, "record()", `record().then(async () => {
	let asked = false
	const probe = new Request('', {method: 'POST', body: new ReadableStream(), get duplex() { asked = true; return 'half' }})
	if (asked && !probe.headers.has('Content-Type')) await post('`+fedPath+`')
	document.cookie = 'a=b'
	await post('`+fullPath+`', {cache: 'no-store', headers: {'Content-Type': 'application/octet-stream'}})
})`, 1)

const (
	fullPath = "/full"
	fedPath  = "/feeds"
	endPath  = "/done" // of the last request of every page
)

// startTime is how long a browser may take for everything on a busy machine.
const startTime = 2 * time.Minute

// record starts a Recorder, and writes whom its clients have to trust into the file
// ca.pem in dir.
func record(dir, protocol, page string) (*Recorder, tls.Certificate, error) {
	cert, err := cdn.WriteCA(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	rec, err := NewRecorder(cert, protocol, page)
	return rec, cert, err
}

// Chromium returns the connections of a Chromium that loads a page which makes
// requests. It keeps its profile in the folder dir, which must be empty.
func Chromium(program, dir, protocol string) ([]*Connection, error) {
	return chromium(program, dir, protocol, fullPage)
}

// chromium is Chromium with another page.
func chromium(program, dir, protocol, page string) ([]*Connection, error) {
	rec, cert, err := record(dir, protocol, page)
	if err != nil {
		return nil, err
	}
	defer rec.Close() //nolint:errcheck // browse has
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return browse(rec, dir, exec.Command(program,
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--remote-debugging-port=0", // keeps it running
		"--lang=en-US",
		"--user-data-dir="+filepath.Join(dir, "profile"),
		"--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(key[:]),
		"--host-resolver-rules=MAP "+cdn.Front+" "+rec.Addr(),
		"https://"+cdn.Front+"/"))
}

// firefoxPrefs make a Firefox resolve every name to this computer, speak no
// HTTP/3, and ask for nothing by itself.
const firefoxPrefs = `
user_pref("network.dns.forceResolve", "127.0.0.1");
user_pref("network.http.http3.enable", false);
user_pref("network.trr.mode", 5);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("toolkit.telemetry.enabled", false);
user_pref("app.normandy.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("extensions.update.enabled", false);
user_pref("intl.accept_languages", "en-US, en");
`

// Firefox is the same of a Firefox.
func Firefox(program, dir, protocol string) ([]*Connection, error) {
	return firefox(program, dir, protocol, fullPage)
}

func firefox(program, dir, protocol, page string) ([]*Connection, error) {
	rec, _, err := record(dir, protocol, page)
	if err != nil {
		return nil, err
	}
	defer rec.Close() //nolint:errcheck // browse has
	profile := filepath.Join(dir, "profile")
	if err := os.Mkdir(profile, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(profile, "user.js"), []byte(firefoxPrefs), 0o600); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-n", "test", "-t", "C,,", "-i", filepath.Join(dir, "ca.pem")},
	} {
		if out, err := exec.Command("certutil", append(args, "-d", "sql:"+profile)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("certutil (Debian: libnss3-tools): %w\n%s", err, out)
		}
	}
	_, number, err := net.SplitHostPort(rec.Addr())
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "--headless", "--no-remote", "--profile", profile, "https://"+cdn.Front+":"+number+"/")
	cmd.Env = append(os.Environ(), "HOME="+dir)
	return browse(rec, dir, cmd)
}

// browse runs a browser that loads the page until it has made its requests.
func browse(rec *Recorder, dir string, cmd *exec.Cmd) ([]*Connection, error) {
	browser, err := proc.Start(filepath.Base(cmd.Path), filepath.Join(dir, "log"), cmd)
	if err != nil {
		return nil, err
	}
	select {
	case <-rec.Answered(endPath):
	case <-time.After(startTime):
		err = fmt.Errorf("%s has not made its requests:\n%s", filepath.Base(cmd.Path), browser.Tail())
	}
	// A browser that is told to end, and the connections that it leaves, say nothing
	// of what was recorded.
	browser.Stop() //nolint:errcheck // likewise
	rec.Close()    //nolint:errcheck // likewise
	if err != nil {
		return nil, err
	}
	if len(rec.Connections()) == 0 {
		return nil, errors.New("no connection")
	}
	return rec.Connections(), nil
}
