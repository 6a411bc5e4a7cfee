package arq

import (
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/xtaci/kcp-go/v5"
)

// kcpPair is two control blocks on a perfect network.
type kcpPair struct {
	x, y *kcp.KCP
	wire []func()
}

func newKCPPair() *kcpPair {
	p := new(kcpPair)
	to := func(k **kcp.KCP) func([]byte, int) {
		return func(buf []byte, size int) {
			segment := append([]byte(nil), buf[:size]...)
			p.wire = append(p.wire, func() { (*k).Input(segment, kcp.IKCP_PACKET_REGULAR, false) })
		}
	}
	p.x, p.y = kcp.NewKCP(conversation, to(&p.y)), kcp.NewKCP(conversation, to(&p.x))
	for _, k := range []*kcp.KCP{p.x, p.y} {
		k.SetMtu(headerSize + SegmentSize)
		k.NoDelay(1, 0, 2, 1)
		k.WndSize(MaxWindow, MaxWindow)
		k.Input(firstWindow(MaxWindow), kcp.IKCP_PACKET_REGULAR, false)
	}
	return p
}

// send gives the numbers from first on, n of them, to x.
func (p *kcpPair) send(first, n uint32) {
	for i := range n {
		p.x.Send(binary.LittleEndian.AppendUint32(nil, first+i))
	}
	flush(p.x, kcp.IKCP_FLUSH_FULL)
}

// deliver moves what is on the wire, and what that gives rise to.
func (p *kcpPair) deliver() {
	for len(p.wire) > 0 {
		next := p.wire[0]
		p.wire = p.wire[1:]
		next()
		if len(p.wire) == 0 {
			flush(p.y, kcp.IKCP_FLUSH_FULL)
		}
	}
}

// expect reads the numbers from first on, n of them, from y, and no more.
func (p *kcpPair) expect(t *testing.T, first, n uint32) {
	t.Helper()
	b := make([]byte, SegmentSize)
	for i := range n {
		if size := p.y.Recv(b); size != 4 || binary.LittleEndian.Uint32(b) != first+i {
			t.Fatalf("number %d: got %x", first+i, b[:max(size, 0)])
		}
	}
	if size := p.y.Recv(b); size >= 0 {
		t.Fatalf("%d bytes too many", size)
	}
}

func ringLen(k *kcp.KCP, name string) int {
	return field(reflect.ValueOf(k).Elem().FieldByName(name).Elem(), "elements").Len()
}

// Rings that are empty become small, others stay as they are, and the session
// goes on after either.
func TestTrim(t *testing.T) {
	const many = 1000
	p := newKCPPair()
	trim(p.x)
	trim(p.y)
	for round := range uint32(3) {
		first := round * many
		p.send(first, many)
		trim(p.x) // it waits for acknowledgements
		if n := ringLen(p.x, "snd_buf"); n < many {
			t.Fatalf("a ring of %d with segments of which %d are not acknowledged", n, many)
		}
		p.deliver()
		trim(p.y) // it has segments to be read
		p.expect(t, first, many)
		trim(p.x)
		trim(p.y)
		for _, k := range []*kcp.KCP{p.x, p.y} {
			for _, name := range []string{"snd_buf", "snd_queue", "rcv_queue"} {
				if n := ringLen(k, name); n != ringSize {
					t.Errorf("round %d: %s has %d elements, want %d", round, name, n, ringSize)
				}
			}
		}
	}
}

// A segment that came too early, and its acknowledgement, survive.
func TestTrimKeepsWhatIsEarly(t *testing.T) {
	p := newKCPPair()
	p.send(0, 1)
	late := p.wire
	p.wire = nil
	p.send(1, 5)
	for _, segment := range p.wire {
		segment()
	}
	p.wire = nil
	trim(p.y)
	for _, segment := range late {
		segment()
	}
	flush(p.y, kcp.IKCP_FLUSH_FULL)
	p.deliver()
	p.expect(t, 0, 6)
	if n := p.x.WaitSnd(); n != 0 {
		t.Errorf("%d segments are not acknowledged", n)
	}
}

// Memory of KCP's own is as large as what it is lent, and a flush puts out what
// it has written there.
func TestFlushMemory(t *testing.T) {
	var out []byte
	k := kcp.NewKCP(conversation, func(p []byte, size int) { out = p[:size] })
	k.SetMtu(headerSize + SegmentSize)
	k.NoDelay(1, 0, 2, 1)
	memory := flushMemory(k)
	if len(*memory) != flushSize {
		t.Errorf("KCP has %d bytes for a flush, want %d", len(*memory), flushSize)
	}
	lent := make([]byte, flushSize)
	*memory = lent
	k.Send([]byte("text"))
	flush(k, kcp.IKCP_FLUSH_FULL)
	if len(out) != headerSize+4 || &out[0] != &lent[0] {
		t.Errorf("a flush put out %x, not from what was lent", out)
	}
}
