package decoy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// reasons are the words of nginx where they are not those of net/http.
var reasons = map[int]string{
	http.StatusMethodNotAllowed: "Not Allowed",
	http.StatusGatewayTimeout:   "Gateway Time-out",
}

// padding is what nginx adds for browsers that show a page of their own in
// place of a short one (option msie_padding, on by default).
var padding = strings.Repeat("<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n", 6)

// errorPage answers with a page of nginx for code, a redirect or an error.
// Headers that are set already stay.
func errorPage(w http.ResponseWriter, r *http.Request, code int) {
	reason := reasons[code]
	if reason == "" {
		reason = http.StatusText(code)
	}
	title := fmt.Sprintf("%d %s", code, reason)
	body := "<html>\r\n<head><title>" + title + "</title></head>\r\n<body>\r\n<center><h1>" + title +
		"</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
	if code >= 400 && wantsPadding(r.UserAgent()) {
		body += padding
	}
	h := w.Header()
	h.Set("Server", "nginx")
	h.Set("Content-Type", "text/html")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(body)) // a peer that is gone has no use for the error
	}
}

// wantsPadding tells a browser as nginx does: by Chrome/ without Gecko/, or by
// MSIE, and not Opera.
func wantsPadding(agent string) bool {
	if strings.Contains(agent, "Opera") {
		return false
	}
	return strings.Contains(agent, "MSIE ") ||
		strings.Contains(agent, "Chrome/") && !strings.Contains(agent, "Gecko/")
}
