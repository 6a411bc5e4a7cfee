// Package kcpsmux is the engine kcp-smux: the library smux over the one stream
// of the engine kcp, and nothing else.
package kcpsmux

import (
	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/mux"
	"turbotunnel/common/engine/kcp"
)

// Engine is the engine kcp-smux.
type Engine struct{}

func (Engine) Name() string                                     { return "kcp-smux" }
func (Engine) Multiplexes() bool                                { return true }
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return start(pc, true), nil }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return start(pc, false), nil }

func start(pc engine.Carrier, client bool) *mux.Session {
	return mux.New(pc, kcp.NewConn(pc, client), client)
}
