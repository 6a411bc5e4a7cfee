// Package kcpsmux is the engine kcp-smux: the library smux over the one stream
// of the engine kcp, and nothing else.
//
// # On the wire
//
// The stream of package kcp, and in it the frames of package mux.
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
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return start(pc, true) }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return start(pc, false) }

func start(pc engine.Carrier, client bool) (engine.Session, error) {
	return mux.New(pc, kcp.NewConn(pc, client), client), nil
}
