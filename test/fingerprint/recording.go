package fingerprint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"turbotunnel/common/front"
)

// ErrAgain is the error of connections that by chance do not show all that there is
// to see: a browser opens one more in advance now and then, without a session.
var ErrAgain = errors.New("fingerprint: no connection was resumed; record again")

// NewRecording makes a recording of what a browser has sent over HTTP/2 and HTTP/1.1.
func NewRecording(browser string, h2, h1 []*Connection) (front.Recording, error) {
	rec := front.Recording{Browser: browser}
	first := slices.IndexFunc(h2, func(c *Connection) bool { return !c.Resumed && c.asks(firstPaths[0]) })
	later := slices.IndexFunc(h2, func(c *Connection) bool { return c.Resumed && c.asks(secondPaths[0]) })
	full := slices.IndexFunc(h2, func(c *Connection) bool { return c.asks(fullPath) })
	if first < 0 || later < 0 || full < 0 {
		return rec, ErrAgain
	}
	rec.First, rec.Resumed = asRecord(h2[first].Message), asRecord(h2[later].Message)
	var err error
	if rec.HTTP2, err = http2Of(h2[later]); err != nil {
		return rec, err
	}
	rec.HTTP2.Feeds = slices.ContainsFunc(h2, func(c *Connection) bool { return c.asks(fedPath) })
	rec.Head2 = asWindows(h2[full].requests(fullPath)[0].Fields)
	for _, c := range h1 {
		for _, h := range c.Heads {
			if strings.HasPrefix(h.Line, "POST "+fullPath+" ") {
				rec.Head1 = asWindows(h.Fields)
			}
		}
	}
	if rec.Head1 == nil {
		return rec, errors.New("fingerprint: no request over HTTP/1.1")
	}
	return rec, nil
}

// asRecord is a ClientHello as the one TLS record that every browser writes.
func asRecord(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{22, 3, 1}, uint16(len(message))), message...)
}

// http2Of is what the frames of a connection say.
func http2Of(c *Connection) (front.RecordedHTTP2, error) {
	var h front.RecordedHTTP2
	for _, f := range c.Frames {
		switch {
		case f.Kind == http2.FrameSettings && h.Settings == nil:
			for _, s := range f.Settings {
				h.Settings = append(h.Settings, [2]uint32{uint32(s.ID), s.Val})
			}
		case f.Kind == http2.FrameWindowUpdate && f.Stream == 0 && h.Window == 0:
			h.Window = f.Window
		case f.Kind == http2.FrameHeaders && f.Priority == nil:
			return h, errors.New("fingerprint: a request without priority, which the client cannot imitate")
		case f.Kind == http2.FrameHeaders:
			h.Weight, h.Exclusive = f.Priority.Weight, f.Priority.Exclusive
			h.InRow = h.InRow || f.Priority.StreamDep != 0
		}
	}
	post := c.requests(secondPaths[0])[0]
	for _, f := range c.Frames {
		if f.Kind == http2.FrameWindowUpdate && f.Stream == post.Stream {
			h.StreamWindow = f.Window
			break
		}
	}
	return h, nil
}

// requests are the heads of the HTTP/2 requests for path.
func (c *Connection) requests(path string) []Frame {
	return slices.DeleteFunc(c.Requests(), func(f Frame) bool {
		return !slices.Contains(f.Fields, hpack.HeaderField{Name: ":path", Value: path})
	})
}

// asks tells whether path was asked for over HTTP/2.
func (c *Connection) asks(path string) bool { return len(c.requests(path)) > 0 }

// asWindows are fields as the browser would say them on Windows, with a window, and
// as Google builds it: as most people's does. The rest does not depend on that.
func asWindows(fields []hpack.HeaderField) []string {
	var lines []string
	for _, f := range fields {
		value := f.Value
		switch strings.ToLower(f.Name) {
		case "user-agent":
			value = strings.Replace(system.ReplaceAllString(value, "(Windows NT 10.0; Win64; x64"), "HeadlessChrome", "Chrome", 1)
		case "sec-ch-ua":
			value = asGoogle(value)
		case "sec-ch-ua-platform":
			value = `"Windows"`
		default:
			value = port.ReplaceAllString(value, "")
		}
		lines = append(lines, f.Name+": "+value)
	}
	return lines
}

var (
	// system is what a User-Agent says of the computer.
	system = regexp.MustCompile(`\(X11; Linux [a-z0-9_]+`)

	// port is that of the Recorder, which is chance.
	port = regexp.MustCompile(`:\d{4,5}\b`)
)

// asGoogle is the list of brands of a Chromium as Google Chrome of the same version
// has it: with one more, and in the order that follows from the version
// (GetRandomOrder and GenerateBrandVersionList in Chromium's user_agent_utils.cc).
func asGoogle(list string) string {
	var chromium, madeUp string
	for _, brand := range strings.Split(list, ", ") {
		switch {
		case strings.HasPrefix(brand, `"Chromium"`):
			chromium = brand
		case !strings.Contains(brand, "Chrome"):
			madeUp = brand // which keeps servers from relying on names
		}
	}
	var version int
	if _, err := fmt.Sscanf(chromium, `"Chromium";v="%d"`, &version); err != nil {
		return list
	}
	orders := [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	var brands [3]string
	for i, brand := range []string{madeUp, chromium, strings.Replace(chromium, "Chromium", "Google Chrome", 1)} {
		brands[orders[version%len(orders)][i]] = brand
	}
	return strings.Join(brands[:], ", ")
}
