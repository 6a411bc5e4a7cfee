package fingerprint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A Frame is one HTTP/2 frame of a client, of those that fingerprints see.
type Frame struct {
	Kind     http2.FrameType
	Stream   uint32
	Settings []http2.Setting      // of SETTINGS
	Window   uint32               // the increment of WINDOW_UPDATE
	Priority *http2.PriorityParam // of PRIORITY and HEADERS, nil if there is none
	Fields   []hpack.HeaderField  // of HEADERS
	Flags    http2.Flags
	Length   uint32
}

// An H2Reader reads the frames of a client.
type H2Reader struct {
	framer *http2.Framer
	hpack  *hpack.Decoder
}

// errPreface is the error of a connection that does not begin as HTTP/2 does.
var errPreface = errors.New("fingerprint: no HTTP/2 preface")

// NewH2Reader reads the connection preface from r, and answers to w what a
// client waits for: the caller has written its SETTINGS.
func NewH2Reader(r io.Reader, w io.Writer) (*H2Reader, error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(r, preface); err != nil {
		return nil, err
	}
	if !bytes.Equal(preface, []byte(http2.ClientPreface)) {
		return nil, errPreface
	}
	return &H2Reader{framer: http2.NewFramer(w, r), hpack: hpack.NewDecoder(4096, nil)}, nil
}

// Next returns the next frame. It acknowledges SETTINGS and PING.
func (r *H2Reader) Next() (Frame, error) {
	f, err := r.framer.ReadFrame()
	if err != nil {
		return Frame{}, err
	}
	head := f.Header()
	out := Frame{Kind: head.Type, Stream: head.StreamID, Flags: head.Flags, Length: head.Length}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			break
		}
		err = f.ForeachSetting(func(s http2.Setting) error {
			out.Settings = append(out.Settings, s)
			return nil
		})
		if err == nil {
			err = r.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			err = r.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		out.Window = f.Increment
	case *http2.PriorityFrame:
		out.Priority = &f.PriorityParam
	case *http2.HeadersFrame:
		if f.HasPriority() {
			out.Priority = &f.Priority
		}
		if !f.HeadersEnded() {
			return out, errors.New("fingerprint: a head in more than one frame")
		}
		out.Fields, err = r.hpack.DecodeFull(f.HeaderBlockFragment())
	}
	return out, err
}

// Akamai is the HTTP/2 fingerprint of Akamai's white paper (Passive
// Fingerprinting of HTTP/2 Clients, 2017) of a client that has sent frames:
// SETTINGS|WINDOW_UPDATE|PRIORITY|pseudo-headers.
func Akamai(frames []Frame) string {
	var settings, priorities []string
	window, pseudo := "00", ""
	for _, f := range frames {
		switch {
		case f.Kind == http2.FrameSettings && len(f.Settings) > 0 && settings == nil:
			for _, s := range f.Settings {
				settings = append(settings, fmt.Sprintf("%d:%d", s.ID, s.Val))
			}
		case f.Kind == http2.FrameWindowUpdate && f.Stream == 0 && window == "00":
			window = fmt.Sprint(f.Window)
		case f.Kind == http2.FramePriority:
			exclusive := 0
			if f.Priority.Exclusive {
				exclusive = 1
			}
			priorities = append(priorities, fmt.Sprintf("%d:%d:%d:%d", f.Stream, exclusive, f.Priority.StreamDep, int(f.Priority.Weight)+1))
		case f.Kind == http2.FrameHeaders && pseudo == "":
			var order []string
			for _, field := range f.Fields {
				if field.IsPseudo() {
					order = append(order, field.Name[1:2])
				}
			}
			pseudo = strings.Join(order, ",")
		}
		if pseudo != "" {
			break
		}
	}
	if priorities == nil {
		priorities = []string{"0"}
	}
	return strings.Join(settings, ";") + "|" + window + "|" + strings.Join(priorities, ",") + "|" + pseudo
}
