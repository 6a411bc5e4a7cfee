package main

import "encoding/binary"

// tellEvery is how many bytes are read of a client's requests before it is told
// that its windows have so much room again. package http2 tells it after each
// read, which takes both programs a wake-up and a write for every 16 KB of an
// upload: at 100 Mbit/s a fifth of what the processors do for one. It is a
// hundredth of a window.
const tellEvery = 256 << 10

// credit is by how much the client's windows have grown, of which it has not been
// told yet. The zero value is nothing.
type credit struct {
	conn    int
	streams map[uint32]int
	all     int // of streams together
}

// updateSize is that of a WINDOW_UPDATE.
const updateSize = frameHead + 4

// withhold keeps back the WINDOW_UPDATEs with which p begins, if p is a client's, and
// tells when it is time. It returns how many bytes of p they are. out.mu is held.
func (c *http2Conn) withhold(p []byte) (int, error) {
	if !c.isClients() || !c.out.at.isBetween() {
		return 0, nil // a stranger sees what net/http says
	}
	credit := &c.out.credit
	before := credit.conn
	n := credit.take(p)
	c.hold(int64(before - credit.conn))
	updates, opened := credit.due()
	if updates == nil {
		return n, nil
	}
	c.allowed.Add(int64(opened)) // before the client can know of it
	_, err := c.Conn.Write(updates)
	return n, err
}

// take takes in the WINDOW_UPDATEs with which p begins, and returns how many bytes
// they are.
func (c *credit) take(p []byte) (size int) {
	for len(p) >= updateSize {
		head := frameHeader(p)
		if !head.is(typeUpdate) || head.size() != updateSize-frameHead {
			break
		}
		n := int(binary.BigEndian.Uint32(p[frameHead:]))
		if stream := head.stream(); stream == 0 {
			c.conn += n
		} else {
			if c.streams == nil {
				c.streams = make(map[uint32]int)
			}
			c.streams[stream] += n
			c.all += n
		}
		p, size = p[updateSize:], size+updateSize
	}
	return size
}

// forget takes note that a stream has ended.
func (c *credit) forget(stream uint32) {
	c.all -= c.streams[stream]
	delete(c.streams, stream)
}

// due is what the client is to be told now, which is all there is when it is enough,
// and by how much that opens the connection's window.
func (c *credit) due() (frames []byte, opened int) {
	if max(c.conn, c.all) < tellEvery { // package http2 says both, but not always one by one
		return nil, 0
	}
	if opened = c.conn; opened > 0 {
		frames = appendFrame(nil, typeUpdate, 0, number(uint32(opened))...)
	}
	for stream, n := range c.streams {
		frames = appendFrame(frames, typeUpdate, stream, number(uint32(n))...)
	}
	*c = credit{}
	return frames, opened
}
