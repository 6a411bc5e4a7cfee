package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// errDecoy says that the server took a request for a stranger's.
var errDecoy = errors.New("the server's answer is the decoy's")

// errStatus is the answer to a first message that says no.
type errStatus byte

func (e errStatus) Error() string { return fmt.Sprintf("the server refuses with status %d", byte(e)) }

// kcpPush is KCP's command for a segment with data, markOpen the last byte of the
// first message of a stream (doc/protocol.md).
const (
	kcpPush  = 81
	markOpen = 1
)

// The streams of the target do what the first byte says, see target.go.
const (
	askEcho  = 'e'
	askDrip  = 'd'
	askBlast = 'b'
	askNever = 'n'
	askLog   = 'l'
)

// A session is one that an attacker has opened with the key of the bridge line,
// by hand: it says what no client would say. It is for one goroutine.
type session struct {
	road
	send *wire.Key
	recv *wire.Key

	exchange, record, head uint64
	grant                  uint64   // records below this number have room at the server
	got                    wire.Set // records of the server's
}

// A road is how an attacker's requests get to the server. It never changes.
type road struct {
	client *http.Client
	url    string
	sent   *counter
}

// overHTTP2 is a client with a connection of its own over HTTP/2 in the clear,
// overHTTP1 over HTTP/1.1.
func overHTTP2() *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: t}
}

func overHTTP1() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableCompression: true}}
}

// open opens a session, and returns it with the answer's body still open.
func (r *rig) open(ctx context.Context, c *http.Client, engine string, ask wire.Head) (*session, io.ReadCloser, error) {
	id := handshake.NewID(r.key, handshake.DayOf(time.Now()))
	msg, initiator, err := handshake.Initiate(r.key, id, handshake.Hello{
		Version: handshake.Version, Time: time.Now(), Engine: engine, Binding: random(handshake.BindingSize), Ask: ask.Append(nil),
	}, 256)
	if err != nil {
		return nil, nil, err
	}
	s := &session{road: road{c, r.url + "/" + id.Segment(), &r.sent}, exchange: 1, grant: 2048}
	resp, err := s.request(ctx, msg)
	if err != nil {
		return nil, nil, err
	}
	answer, keys, err := initiator.Finish(resp.Body)
	if err == nil && answer.Status != handshake.Accepted {
		err = errStatus(answer.Status)
	}
	if err != nil {
		resp.Body.Close()
		return nil, nil, err
	}
	s.send, s.recv = keys.Send, keys.Receive
	return s, resp.Body, nil
}

// opened is open, when the answer has been read.
func (r *rig) opened(ctx context.Context, c *http.Client, engine string) (*session, error) {
	s, body, err := r.open(ctx, c, engine, wire.Head{Limit: 1 << 10})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return s, s.takeIn(body)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

func (r road) request(ctx context.Context, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.sent.Add(int64(len(body)))
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		io.Copy(io.Discard, resp.Body) //nolint:errcheck // its end is as good as its content
		resp.Body.Close()
		return nil, errDecoy
	}
	return resp, nil
}

// post sends a body and takes in the answer.
func (s *session) post(ctx context.Context, body []byte) error {
	resp, err := s.request(ctx, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return s.takeIn(resp.Body)
}

// say posts a head that asks for nothing.
func (s *session) say(ctx context.Context) error { return s.post(ctx, s.sealHead(s.newHead())) }

func (s *session) takeIn(r io.Reader) error {
	buf := make([]byte, wire.BufferSize)
	var head wire.Head
	for {
		u, err := s.recv.Next(r, buf)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case u.Kind == wire.RecordKind:
			s.got.Add(u.Number)
			continue
		}
		if err := head.Parse(u.Payload); err != nil {
			return err
		}
		s.grant = max(s.grant, head.Window)
		if head.Close != 0 {
			return fmt.Errorf("the server has ended the session for reason %d", head.Close)
		}
	}
}

// newHead is a head of the next exchange that acknowledges nothing.
func (s *session) newHead() wire.Head {
	h := wire.Head{Exchange: s.exchange, Time: uint32(time.Now().UnixMilli()), Limit: 1, Window: 1 << 30}
	s.exchange++
	return h
}

func (s *session) sealHead(h wire.Head) []byte {
	b := s.send.Seal(h.Append(make([]byte, wire.HeaderSize, 512)), wire.HeadKind, s.head)
	s.head++
	return bytes.Clone(b)
}

func (s *session) sealRecord(n uint64, plain []byte) []byte {
	b := append(make([]byte, wire.HeaderSize, wire.HeaderSize+len(plain)+64), plain...)
	return s.send.Seal(b, wire.RecordKind, n)
}

// next seals datagrams as the session's next record.
func (s *session) next(datagrams ...[]byte) []byte {
	var plain []byte
	for _, d := range datagrams {
		plain = wire.AppendDatagram(plain, d)
	}
	s.record++
	return s.sealRecord(s.record-1, plain)
}

// startStream opens the first stream of a kcp-smux session and says one byte on it.
func (s *session) startStream(ctx context.Context, ask byte) error {
	frames := append(smuxFrame(0, 1), smuxFrame(2, 1, ask)...)
	return s.post(ctx, append(s.sealHead(s.newHead()), s.next(kcpSegment(0, append(frames, markOpen)))...))
}

// kcpSegment is a segment with data of KCP's, as it stands in a datagram.
func kcpSegment(number uint32, content []byte) []byte {
	p := make([]byte, 24, 24+len(content))
	binary.LittleEndian.PutUint32(p, 1) // the conversation
	p[4] = kcpPush
	binary.LittleEndian.PutUint16(p[6:], 16000) // window
	binary.LittleEndian.PutUint32(p[12:], number)
	binary.LittleEndian.PutUint32(p[20:], uint32(len(content)))
	return append(p, content...)
}

// smuxFrame is a frame of smux's: 0 opens the stream, 2 has data.
func smuxFrame(command byte, stream uint32, data ...byte) []byte {
	f := []byte{2, command, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(f[2:], uint16(len(data)))
	binary.LittleEndian.PutUint32(f[4:], stream)
	return append(f, data...)
}
