package main

const (
	// leastMemory is the least that -memory-limit takes: a session or two.
	leastMemory = 32 << 20

	// connectionCost is what a connection takes by itself, in bytes: 8300 that said
	// nothing more after a first request took 179 MB.
	connectionCost = 20 << 10

	// webPart of the memory limit may be held by HTTP/2, besides: what has come and
	// nobody reads.
	webPart = 4
)

// held is how many bytes are held for others.
func (s *service) held() int64 {
	return s.tunnel.Stats().Memory + s.door.held.Load() + int64(s.door.open())*connectionCost
}
