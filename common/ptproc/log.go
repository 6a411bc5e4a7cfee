package ptproc

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/scrub"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// LevelNotice is the level of the few messages that tor shows its user at its
// default setting, beside warnings and errors. Info goes to the log file and to
// those who asked tor for more.
const LevelNotice = slog.Level(2)

// AddrKey is the key of attributes that hold network addresses of any form.
// Their values are hidden unless the operator asked for unsafe logging, as is
// everything else that looks like an address.
const AddrKey = "addr"

// A handler writes each record as one line: time, level, message, attributes
// as key=value. It hides addresses, writes control characters as escapes, and
// tells tor as well. Safe for concurrent use.
type handler struct {
	*sink
	attrs slog.Handler // writes the attributes, and nothing else, to sink.buf
}

// A sink is what a handler shares with those that With made of it.
type sink struct {
	dst    io.Writer
	unsafe bool // addresses are shown
	tor    bool // tor is told

	mu  sync.Mutex   // guards what follows
	buf bytes.Buffer // attributes of the record at hand
}

func newHandler(dst io.Writer, unsafe, tor bool) *handler {
	h := &handler{sink: &sink{dst: dst, unsafe: unsafe, tor: tor}}
	h.attrs = slog.NewTextHandler(&h.buf, &slog.HandlerOptions{ReplaceAttr: h.replace})
	return h
}

// replace drops what Handle writes itself and hides addresses in values.
func (s *sink) replace(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	if a.Key == AddrKey && !s.unsafe {
		return slog.String(a.Key, scrub.Hidden)
	}
	if err, ok := a.Value.Any().(error); ok {
		text := err.Error()
		if !s.unsafe {
			text = scrub.Error(err)
		}
		return slog.String(a.Key, oneLine(text))
	}
	if a.Value.Kind() == slog.KindString && !s.unsafe {
		return slog.String(a.Key, scrub.Name(a.Value.String()))
	}
	return a
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.sink, h.attrs.WithAttrs(attrs)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.sink, h.attrs.WithGroup(name)}
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	text := h.text(ctx, r)
	level := levelName(r.Level)
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	io.WriteString(h.dst, at.UTC().Format(time.DateTime)+" "+level+" "+text+"\n")
	if h.tor {
		text = forTor(text)
		switch level {
		case "error":
			pt.Log(pt.LogSeverityError, text)
		case "warning":
			pt.Log(pt.LogSeverityWarning, text)
		case "notice":
			pt.Log(pt.LogSeverityNotice, text)
		default:
			pt.Log(pt.LogSeverityInfo, text)
		}
	}
	return nil
}

// forTor makes text fit for a LOG line: in ASCII, and so short that the line has
// no more than atomicLimit bytes.
func forTor(text string) string {
	const mark = " [cut]"
	text = scrub.ASCII(text)
	room := atomicLimit - len("LOG SEVERITY=warning MESSAGE=\"\"\n")
	length, keep := 0, 0 // as written; of text, so that the mark fits, too
	for i, c := range []byte(text) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			length += 3 // an octal escape
		}
		length++
		if length+len(mark) <= room {
			keep = i + 1
		}
		if length > room {
			return text[:keep] + mark
		}
	}
	return text
}

// text returns r's message and attributes in a form that may be shown.
func (h *handler) text(ctx context.Context, r slog.Record) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	h.attrs.Handle(ctx, r)
	text := r.Message
	if attrs := strings.TrimSuffix(h.buf.String(), "\n"); attrs != "" {
		text += " " + attrs
	}
	return clean(text, h.unsafe)
}

// oneLine writes the lines of an errors.Join as one sentence.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// clean makes text fit for a log: one line, not too long, no addresses.
func clean(text string, unsafe bool) string {
	cut := false
	// Most of a text that is far too long need not be looked at. It is cut
	// between words, so that no half of an address stays.
	if most := 4 * lineLimit; len(text) > most {
		text = text[:strings.LastIndexByte(text[:most], ' ')+1]
		cut = true
	}
	if !unsafe {
		text = scrub.Addresses(text)
	}
	text = scrub.Line(text)
	if len(text) > lineLimit {
		text = strings.ToValidUTF8(text[:lineLimit], "")
		cut = true
	}
	if cut {
		text += " [cut]"
	}
	return text
}

// levelName returns tor's word for the severity that level belongs to.
func levelName(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warning"
	case level >= LevelNotice:
		return "notice"
	default:
		return "info"
	}
}
