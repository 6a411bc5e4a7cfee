package ptproc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"turbotunnel/internal/scrub"

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

// Levels are the names of what a log may begin with, from all to little.
var Levels = []string{"debug", "info", "notice", "warning", "error"}

// ParseLevel reads one of Levels.
func ParseLevel(name string) (slog.Level, error) {
	for level := slog.LevelDebug; level <= slog.LevelError; level++ {
		if slices.Contains(Levels, name) && levelName(level) == name {
			return level, nil
		}
	}
	return 0, fmt.Errorf("no level of the log is called %+q: take one of %s", name, strings.Join(Levels, ", "))
}

// A LogConfig says where a program's log goes and how. The zero value is what
// programs begin with.
type LogConfig struct {
	File   string     // appended to, and created with mode 0600; empty: stderr
	Unsafe bool       // addresses are shown
	Level  slog.Level // the lowest that is written; tor is told from slog.LevelInfo up
	JSON   bool       // one object a line
}

// A handler writes each record as one line: time, level, message, attributes
// as key=value, or the same as a JSON object. It hides addresses, writes control
// characters as escapes, and tells tor as well. Safe for concurrent use.
type handler struct {
	*sink
	attrs slog.Handler // writes the attributes, and nothing else, to sink.buf
	json  slog.Handler // writes to sink.dst; nil: lines of text
}

// A sink is what a handler shares with those that With made of it.
type sink struct {
	dst    io.Writer
	config LogConfig
	tor    bool // tor is told

	mu  sync.Mutex   // guards what follows
	buf bytes.Buffer // attributes of the record at hand
}

func newHandler(dst io.Writer, config LogConfig, tor bool) *handler {
	h := &handler{sink: &sink{dst: dst, config: config, tor: tor}}
	h.attrs = slog.NewTextHandler(&h.buf, &slog.HandlerOptions{ReplaceAttr: h.replace})
	if config.JSON {
		h.json = slog.NewJSONHandler(dst, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: h.replaceJSON})
	}
	return h
}

// replaceJSON is replace for an object, which holds all of a record.
func (s *sink) replaceJSON(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch a.Key {
		case slog.TimeKey:
			return slog.Time(a.Key, a.Value.Time().UTC())
		case slog.LevelKey:
			return slog.String(a.Key, levelName(a.Value.Any().(slog.Level)))
		case slog.MessageKey:
			return slog.String(a.Key, clean(a.Value.String(), s.config.Unsafe))
		}
	}
	a = s.replace(groups, a)
	switch a.Value.Kind() {
	case slog.KindString, slog.KindAny:
		a.Value = slog.StringValue(clean(a.Value.String(), s.config.Unsafe))
	}
	return a
}

// replace drops what Handle writes itself and hides addresses in values.
func (s *sink) replace(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	if a.Key == AddrKey && !s.config.Unsafe {
		return slog.String(a.Key, scrub.Hidden)
	}
	if err, ok := a.Value.Any().(error); ok {
		text := err.Error()
		if !s.config.Unsafe {
			text = scrub.Error(err)
		}
		return slog.String(a.Key, oneLine(text))
	}
	if a.Value.Kind() == slog.KindString && !s.config.Unsafe {
		return slog.String(a.Key, scrub.Name(a.Value.String()))
	}
	return a
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.config.Level || h.tor && level >= slog.LevelInfo
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h *handler) WithGroup(name string) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

// with is h with each of its handlers changed.
func (h *handler) with(change func(slog.Handler) slog.Handler) slog.Handler {
	changed := &handler{sink: h.sink, attrs: change(h.attrs)}
	if h.json != nil {
		changed.json = change(h.json)
	}
	return changed
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	text := h.text(ctx, r)
	level := levelName(r.Level)
	switch {
	case r.Level < h.config.Level:
	case h.json != nil:
		h.json.Handle(ctx, r)
	default:
		io.WriteString(h.dst, r.Time.UTC().Format(time.DateTime)+" "+level+" "+text+"\n")
	}
	if h.tor && r.Level >= slog.LevelInfo {
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
	return clean(text, h.config.Unsafe)
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

// levelName returns tor's word for the severity that level belongs to. tor is
// told nothing that is for debugging.
func levelName(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warning"
	case level >= LevelNotice:
		return "notice"
	case level >= slog.LevelInfo:
		return "info"
	default:
		return "debug"
	}
}
