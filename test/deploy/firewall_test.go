package deploy

import (
	"crypto/tls"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/guide"
	"turbotunnel/test/programs"
)

// TestFirewall: what the client sends passes ModSecurity with the Core Rule Set,
// as Debian has them, when they refuse what they find. ModSecurity 2 (Apache) takes
// bodies of 128 KB at most, 3 (nginx) of any size.
func TestFirewall(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		start   func(t *testing.T, dir, listen, origin string)
		address bool // the URL names an address, for which the rules count points
	}{
		"apache":            {startApacheFirewall, false},
		"apache by address": {startApacheFirewall, true},
		"nginx":             {startNginxFirewall, false},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			host := siteName
			if c.address {
				host = "127.0.0.1"
			}
			to := startTarget(t)
			origin, listen, state, dir := programs.Addr(t), programs.Addr(t), programs.Folder(t), programs.Folder(t)
			caFile := guide.WriteCertificate(t, dir, siteName)
			startServer(t, origin, state, to.Addr(), "-trusted-proxies", "127.0.0.1")
			c.start(t, dir, listen, origin)
			if status := postAs(t, listen, "application/octet-stream"); status != http.StatusForbidden {
				t.Fatalf("a type that the rules do not permit: status %d", status)
			}
			if status := postAs(t, listen, ""); status != http.StatusNotFound {
				t.Errorf("no type: status %d, want the decoy's", status)
			}
			move(t, to, startClient(t, caFile, "https://"+host+"/updates",
				"-key", programs.Key(t, state), "-front", siteName, "-addr", slow(t, listen).Addr()), size, nil)
		})
	}
}

// postAs posts a body of a type to the site at addr and returns the status.
func postAs(t *testing.T, addr, contentType string) int {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: siteName}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+addr+"/updates/x", strings.NewReader("\x00\xff\x80binary"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = siteName
	req.Header.Set("User-Agent", "Mozilla/5.0")
	req.Header.Set("Accept", "*/*")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// writeRules writes into dir what a firewall does: a package's recommended
// settings, which only write down what they would refuse, told to refuse it, and
// the Core Rule Set.
func writeRules(t *testing.T, dir, settings, auditLog string) (file string) {
	t.Helper()
	text, err := os.ReadFile(settings)
	if err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 { // Apache gives root's rights up
		for name, mode := range map[string]os.FileMode{dir: 0o711, data: 0o777} {
			if err := os.Chmod(name, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	file = filepath.Join(dir, "rules")
	programs.Write(t, file, guide.Adapt(t, string(text),
		"SecRuleEngine DetectionOnly", "SecRuleEngine On",
		"SecTmpDir /tmp/", "SecTmpDir "+data,
		"SecDataDir /tmp/", "SecDataDir "+data,
		"SecAuditLog "+auditLog, "SecAuditLog "+filepath.Join(dir, "audit.log"),
		"SecUnicodeMapFile unicode.mapping", "SecUnicodeMapFile "+filepath.Join(filepath.Dir(settings), "unicode.mapping"),
	)+`
Include /etc/modsecurity/crs/crs-setup.conf
Include /usr/share/modsecurity-crs/rules/*.conf
`)
	return file
}

const apacheMain = `
ServerRoot DIR
PidFile DIR/pid
DefaultRuntimeDir DIR
ErrorLog DIR/error.log
ServerName www.example.com
Listen ADDR
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule unique_id_module /usr/lib/apache2/modules/mod_unique_id.so
LoadModule security2_module /usr/lib/apache2/modules/mod_security2.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule http2_module /usr/lib/apache2/modules/mod_http2.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
User www-data
Group www-data
Protocols h2 http/1.1
SSLEngine on
SSLCertificateFile DIR/cert.pem
SSLCertificateKeyFile DIR/key.pem
ProxyPass / http://ORIGIN/
Include DIR/rules
`

func startApacheFirewall(t *testing.T, dir, listen, origin string) {
	t.Helper()
	writeRules(t, dir, "/etc/modsecurity/modsecurity.conf-recommended", "/var/log/apache2/modsec_audit.log")
	config := filepath.Join(dir, "apache.conf")
	programs.Write(t, config, strings.NewReplacer("DIR", dir, "ADDR", listen, "ORIGIN", origin).Replace(apacheMain))
	programs.Listen(t, listen, exec.Command("apache2", "-f", config, "-DFOREGROUND"))
}

func startNginxFirewall(t *testing.T, dir, listen, origin string) {
	t.Helper()
	rules := writeRules(t, dir, "/etc/nginx/modsecurity.conf", "/var/log/nginx/modsec_audit.log")
	const before = "\tserver_tokens off;\n"
	programs.Write(t, filepath.Join(dir, "site"), nginxSite(t, dir, listen, origin,
		before, before+"\tmodsecurity on;\n\tmodsecurity_rules_file "+rules+";\n"))
	guide.StartNginx(t, dir, listen, "load_module /usr/lib/nginx/modules/ngx_http_modsecurity_module.so;\n"+nginxMain(t))
}
