# Completion of turbotunnel-server for bash.
_turbotunnel_server() {
	local current=${COMP_WORDS[COMP_CWORD]} words
	COMPREPLY=()
	case ${COMP_WORDS[COMP_CWORD - 1]} in
	-tls-cert | -tls-key | -state-dir | -decoy | -log) compopt -o default; return ;;
	-log-level) words="debug info notice warning error" ;;
	-log-format) words="text json" ;;
	-acme-hostnames | -acme-email | -acme-directory | -url | -fronts | -trusted-proxies | -memory-limit | -metrics | -drain) return ;;
	*) words="-acme-directory -acme-email -acme-hostnames -bridge-line -check -decoy -disable-tls -drain -fronts -h -json -log -log-format -log-level -memory-limit -metrics -proxy-protocol -qr -state-dir -tls-cert -tls-key -trusted-proxies -unsafe-logging -url -version" ;;
	esac
	COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _turbotunnel_server turbotunnel-server
