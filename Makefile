# Needs Go (see go.mod) and, for tests and the demo, Debian. What else is
# missing is installed as root or by sudo; without either, make says what to run.

# The linters, pinned. go run fetches and builds them once.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT = mvdan.cc/gofumpt@v0.12.0

# Debian packages. gcc and libc6-dev are for the race detector.
TEST_PACKAGES = chromium tor obfs4proxy nginx-light haproxy systemd libcap2-bin libapache2-mod-security2 libnginx-mod-http-modsecurity modsecurity-crs ncat microsocks curl bash zsh iproute2 gcc libc6-dev

# How long each fuzz target runs.
FUZZTIME = 30s

.PHONY: all build test test-programs test-pace test-faults test-short lint fuzz demo bench bench-quick bench-engines bench-programs hostile load faults soak clean test-386 install install-files uninstall release deb image FORCE

all: build

# Static programs, made in the folder OUT: they run where there is nothing else, on
# any Linux of this architecture. GOOS and GOARCH choose another one.
OUT = .
build:
	CGO_ENABLED=0 go build -trimpath -o $(OUT)/turbotunnel-client ./client
	CGO_ENABLED=0 go build -trimpath -o $(OUT)/turbotunnel-server ./server

# For all users of this machine, or into the folder DESTDIR for whoever makes a
# package. FROM has the programs. Those that make build has made are installed as they
# are: sudo does not find Go where it is not among the system's own programs.
PREFIX = /usr/local
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FROM = .
BIN = $(DESTDIR)$(PREFIX)/bin
MAN = $(DESTDIR)$(PREFIX)/share/man/man1
BASH_COMPLETION = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH_COMPLETION = $(DESTDIR)$(ZSHDIR)

install: $(if $(wildcard $(FROM)/turbotunnel-server),,build) install-files

install-files:
	install -d $(BIN) $(MAN) $(BASH_COMPLETION) $(ZSH_COMPLETION)
	install -m 755 $(FROM)/turbotunnel-client $(FROM)/turbotunnel-server $(BIN)
	install -m 644 doc/turbotunnel-client.1 doc/turbotunnel-server.1 $(MAN)
	install -m 644 deploy/completion/turbotunnel-client.bash $(BASH_COMPLETION)/turbotunnel-client
	install -m 644 deploy/completion/turbotunnel-server.bash $(BASH_COMPLETION)/turbotunnel-server
	install -m 644 deploy/completion/_turbotunnel-client deploy/completion/_turbotunnel-server $(ZSH_COMPLETION)

uninstall:
	rm -f $(BIN)/turbotunnel-client $(BIN)/turbotunnel-server
	rm -f $(MAN)/turbotunnel-client.1 $(MAN)/turbotunnel-server.1
	rm -f $(BASH_COMPLETION)/turbotunnel-client $(BASH_COMPLETION)/turbotunnel-server
	rm -f $(ZSH_COMPLETION)/_turbotunnel-client $(ZSH_COMPLETION)/_turbotunnel-server

# What others are given, in dist: of the newest commit, for all platforms, and
# the same bytes whoever makes it with the same Go. deb and image make one each,
# for this machine.
release: bin/release
	bin/release -o dist

deb: bin/release
	bin/release -o dist -platforms here -kinds debs

image: bin/release
	bin/release -o dist -platforms here -kinds images

bin/release: FORCE
	@mkdir -p bin && go -C test build -o ../bin/release ./release

FORCE:

# Everything, with real tor, proxies and programs: some minutes. A test whose
# tools are missing fails. -count=1, because go test does not know that a test
# which runs a program depends on the program's source. The folder test is a
# module of its own, which ./... does not enter. Its packages pace and faults, which
# compute much, and confined, which looks at memory, are left out under the race
# detector. pace, in fake time, runs beside the others, which mostly wait for programs;
# faults needs the machine for itself, as hundreds of streams have their times in it.
test:
	test/install.sh $(TEST_PACKAGES)
	go vet ./...
	go -C test vet ./...
	go test -race -count=1 -timeout 15m ./...
	$(MAKE) --jobs=2 test-programs test-pace
	$(MAKE) test-faults
	$(MAKE) test-386

# Where an int has 32 bits: what needs nothing but Go. These programs run on machines
# of 64 bits, too. Left out is what takes long and counts nothing that the rest does
# not: many conditions and limits in fake time, sessions that wait for each other in real time, and
# quic once more beside common/engines.
SLOW_386 = ^(TestConditions|TestAnswerLimit|TestFeedAnswersHeld|TestEngines|TestRestart|TestManySessions|TestForeign.*|TestDialEnds)$$
SLOW_386_QUIC = ^(TestConformance|TestWindow)$$
test-386: export GOARCH = 386
test-386: export CGO_ENABLED = 0
test-386:
	go vet ./...
	go test -short -count=1 -skip '$(SLOW_386)' $$(go list ./... | grep -v /quic$$)
	go test -short -count=1 -skip '$(SLOW_386_QUIC)' ./common/engine/quic

test-programs:
	go -C test test -race -count=1 -timeout 15m ./...

test-pace:
	go -C test test -count=1 -timeout 15m -skip TestMonth ./pace

test-faults:
	go -C test test -count=1 -timeout 15m -skip TestSoak ./faults ./confined

# What needs nothing but Go, without the race detector: some seconds.
test-short:
	go test -short -count=1 ./...
	go -C test test -short -count=1 ./...

lint:
	go vet ./...
	go -C test vet ./...
	go run $(STATICCHECK) ./...
	go -C test run $(STATICCHECK) ./...
	@unformatted=$$(go run $(GOFUMPT) -l .) || exit 1; \
	if [ -n "$$unformatted" ]; then \
		echo "Not formatted; run: go run $(GOFUMPT) -w ."; echo "$$unformatted"; exit 1; \
	fi

# go test fuzzes one target of one package at a time.
fuzz:
	@set -e; for dir in $$(go list -f '{{.Dir}}' ./... && go -C test list -f '{{.Dir}}' ./...); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go 2>/dev/null | cut -d' ' -f2); do \
			echo "$$dir $$target"; \
			go -C "$$dir" test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x .; \
		done; \
	done

# exec: the demo itself gets make's signals, and cleans up.
demo:
	@mkdir -p bin && go -C test build -o ../bin/demo ./demo && exec bin/demo

bench-programs:
	@mkdir -p bin
	go build -o bin/turbotunnel-client ./client
	go build -o bin/turbotunnel-server ./server
	go -C test build -o ../bin/bench ./bench

# The tunnel beside raw HTTP/2 on emulated paths, some ten minutes. It writes
# its tables, plots and numbers into doc/benchmarks.*. Run nothing else.
bench: bench-programs
	exec bin/bench -suite full -o doc

# The essentials, in two minutes, and only on the screen.
bench-quick: bench-programs
	exec bin/bench -suite quick

# All engines side by side, some twenty minutes. It writes doc/engines.*. With
# BEFORE=commit each engine of that commit is measured beside ours, which takes
# twice as long.
bench-engines: bench-programs
	@set -e; if [ -n "$(BEFORE)" ]; then \
		git worktree add --force --detach bin/source $(BEFORE); \
		trap 'git worktree remove --force bin/source' EXIT; \
		for program in client server test/bench; do \
			name=$${program#test/}; [ $$name = bench ] || name=turbotunnel-$$name; \
			go -C bin/source/$$program build -o "$(CURDIR)/bin/$(BEFORE)/$$name" .; \
		done; \
		bin/bench -suite engines -before bin/$(BEFORE) -o doc; \
	else \
		bin/bench -suite engines -o doc; \
	fi

# Attacks of those who hold the bridge line, and of strangers, at full size, in
# ten minutes. Needs some 3 GB of memory and 20 000 descriptors. Run nothing else.
hostile:
	@mkdir -p bin
	go build -o bin/turbotunnel-client ./client
	go build -o bin/turbotunnel-server ./server
	go -C test build -o ../bin/hostile ./hostile
	exec bin/hostile

# A server under load: 10 000 sessions at rest, 500 busy ones, 300 new ones a second,
# in ten minutes. Needs some 6 GB of memory and 20 000 descriptors. Run nothing else.
load:
	@mkdir -p bin
	go build -o bin/turbotunnel-server ./server
	go -C test build -o ../bin/load ./load
	exec bin/load

# Faults that take long: outages and pauses of ten minutes, more bytes on one stream
# than 32 bits count, a gigabyte from a client that has 64 MB, and a month in fake
# time. Half an hour and more.
faults:
	go -C test test -count=1 -timeout 30m -v -run TestMonth ./pace
	go -C test test -count=1 -timeout 90m -v -run 'TestServerDies|TestSuspended|TestOutages|TestFourGigabytes|TestFaults' ./faults -long
	go -C test test -count=1 -timeout 90m -v -run TestLittleMemory ./confined -long

# Random faults for SOAK, with the real programs of each engine, which must not hold
# more afterwards. SEED chooses other ones.
SOAK = 30m
SEED = 1

soak:
	go -C test test -count=1 -timeout 3h -v -run TestSoak ./faults -soak $(SOAK) -seed $(SEED)

clean:
	rm -rf bin dist turbotunnel-client turbotunnel-server
