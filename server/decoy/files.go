package decoy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"
)

// placeholderPage is, byte for byte, what many an unfinished site shows: a page
// of our own wording would name every server of this program.
const placeholderPage = "<html><body><h1>It works!</h1></body></html>\n"

// A file is a regular file, open for reading.
type file struct {
	io.ReadSeeker
	io.Closer
	modified time.Time
	size     int64 // bytes
}

// errFolder is what an opener returns for a folder.
var errFolder = errors.New("is a folder")

// An opener opens the file of a name without leading slash ("." is the root).
type opener func(name string) (*file, error)

// placeholder is a site whose only file is index.html.
func placeholder(modified time.Time) http.Handler {
	return opener(func(name string) (*file, error) {
		switch name {
		case ".":
			return nil, errFolder
		case "index.html":
			page := strings.NewReader(placeholderPage)
			return &file{page, io.NopCloser(nil), modified, page.Size()}, nil
		}
		return nil, fs.ErrNotExist
	})
}

// folder is a site of the files under root. Symbolic links out of it, names
// that begin with a dot and everything that is not a regular file are not
// there.
func folder(root *os.Root) http.Handler {
	return opener(func(name string) (*file, error) {
		if name != "." && (name[0] == '.' || strings.Contains(name, "/.")) {
			return nil, fs.ErrNotExist
		}
		// Asked before opening, because opening a FIFO waits for its writer.
		info, err := root.Stat(name)
		switch {
		case err != nil:
			return nil, err
		case info.IsDir():
			return nil, errFolder
		case !info.Mode().IsRegular():
			return nil, fs.ErrNotExist
		}
		f, err := root.Open(name)
		if err != nil {
			return nil, err
		}
		return &file{f, f, info.ModTime(), info.Size()}, nil
	})
}

// ServeHTTP answers as nginx serves static files.
func (open opener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if status := receive(r, http.NewResponseController(w), io.Discard); status != 0 {
		refuse(w, r, status)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		errorPage(w, r, http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
	if name == "" {
		name = "."
	}
	last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	index := last == "" || last == "." || last == ".."
	wanted := name
	if index {
		wanted = path.Join(name, "index.html")
	}
	f, err := open(wanted)
	if index && err != nil {
		// A folder without an index is forbidden, another name is not there.
		if _, dirErr := open(name); errors.Is(dirErr, errFolder) {
			errorPage(w, r, http.StatusForbidden)
		} else {
			errorPage(w, r, http.StatusNotFound)
		}
		return
	}
	switch {
	case errors.Is(err, errFolder):
		location := url.URL{Path: "/" + name + "/", RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", location.RequestURI())
		errorPage(w, r, http.StatusMovedPermanently)
		return
	case errors.Is(err, fs.ErrPermission):
		errorPage(w, r, http.StatusForbidden)
		return
	case err != nil:
		errorPage(w, r, http.StatusNotFound)
		return
	}
	defer f.Close()
	if r.Method == http.MethodPost {
		errorPage(w, r, http.StatusMethodNotAllowed)
		return
	}
	serveFile(w, r, wanted, f)
}

func serveFile(w http.ResponseWriter, r *http.Request, name string, f *file) {
	modified := f.modified.UTC().Format(http.TimeFormat)
	r = r.Clone(r.Context())
	// nginx takes If-Modified-Since for met only by the same date, and looks
	// at it even beside If-None-Match.
	if since := r.Header.Get("If-Modified-Since"); since != "" && since != modified {
		r.Header.Del("If-Modified-Since")
		r.Header.Del("If-None-Match")
	}
	// The boundary of several ranges would be net/http's, so the file is sent
	// whole, as with nginx's max_ranges 1.
	if strings.Contains(r.Header.Get("Range"), ",") {
		r.Header.Del("Range")
	}
	h := w.Header()
	h.Set("Server", "nginx")
	h.Set("Content-Type", contentType(name))
	h.Set("Etag", fmt.Sprintf(`"%x-%x"`, f.modified.Unix(), f.size))
	http.ServeContent(&fileWriter{w: w, r: r, modified: modified, size: f.size}, r, "", f.modified, f)
}

// fileWriter turns what http.ServeContent says into what nginx says.
type fileWriter struct {
	w        http.ResponseWriter
	r        *http.Request
	modified string
	size     int64
	replaced bool // an error page has been sent in place of what is written
}

func (f *fileWriter) Header() http.Header { return f.w.Header() }

func (f *fileWriter) WriteHeader(code int) {
	h := f.w.Header()
	switch {
	case code == http.StatusNotModified:
		h.Set("Last-Modified", f.modified)
	case code == http.StatusPartialContent:
		h.Del("Accept-Ranges")
	case code >= 400:
		f.replaced = true
		clear(h)
		if code == http.StatusRequestedRangeNotSatisfiable {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", f.size))
		}
		errorPage(f.w, f.r, code)
		return
	}
	f.w.WriteHeader(code)
}

func (f *fileWriter) Write(p []byte) (int, error) {
	if f.replaced {
		return len(p), nil
	}
	return f.w.Write(p)
}

// contentTypes are those that nginx knows, for what sites are made of. The
// table of the machine is not asked, so that every machine answers the same.
var contentTypes = map[string]string{
	".html": "text/html", ".htm": "text/html", ".css": "text/css", ".xml": "text/xml",
	".txt": "text/plain", ".js": "application/javascript", ".json": "application/json",
	".wasm": "application/wasm", ".pdf": "application/pdf", ".zip": "application/zip",
	".rss": "application/rss+xml", ".atom": "application/atom+xml",
	".gif": "image/gif", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png",
	".svg": "image/svg+xml", ".webp": "image/webp", ".avif": "image/avif", ".ico": "image/x-icon",
	".woff": "font/woff", ".woff2": "font/woff2",
	".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".mp4": "video/mp4", ".webm": "video/webm",
}

func contentType(name string) string {
	if t := contentTypes[strings.ToLower(path.Ext(name))]; t != "" {
		return t
	}
	return "application/octet-stream"
}
