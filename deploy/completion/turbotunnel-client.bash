# Completion of turbotunnel-client for bash.
_turbotunnel_client() {
	local current=${COMP_WORDS[COMP_CWORD]} words
	COMPREPLY=()
	case ${COMP_WORDS[COMP_CWORD - 1]} in
	-engine) words="kcp kcp-smux quic sctp" ;;
	-mode) words="auto poll stream" ;;
	-utls) words="chrome firefox safari randomized none" ;;
	-log | -check-file) compopt -o default; return ;;
	-url | -key | -front | -fronts | -addr | -ech | -doh | -proxy | -drain | -memory-limit) return ;;
	*) words="-addr -check -check-file -doh -drain -ech -engine -front -fronts -h -json -key -log -long -memory-limit -mode -proxy -unsafe-logging -url -utls -version" ;;
	esac
	COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _turbotunnel_client turbotunnel-client
