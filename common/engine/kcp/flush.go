package kcp

import (
	_ "unsafe" // for go:linkname

	"github.com/xtaci/kcp-go/v5"
)

// flush is the method of KCP that lets it send what it may. It is not exported,
// and Update, which calls it, does so at most every 10 ms: a question and its
// answer take 12 ms where the path takes none. The name is the linker's, so a
// kcp-go without that method does not link, and TestFlush tells whether the
// method still does what it did. What would make this file unnecessary is in
// doc/engines.md.
//
//go:linkname flush github.com/xtaci/kcp-go/v5.(*KCP).flush
func flush(k *kcp.KCP, what kcp.FlushType) (next uint32)
