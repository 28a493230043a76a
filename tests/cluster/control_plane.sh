# Certificates, etcd, API server, controller manager and scheduler, as processes of the host;
# sourced by the scripts that start things, runs nothing.
# shellcheck shell=bash

# start NAME COMMAND...: run in the background, apart from the caller's session and lock.
start() {
  local name=$1
  shift
  setsid nohup "$@" >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
  echo $! >"$RUN/$name.pid"
}

make_authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
    -keyout "$PKI/ca.key" -subj /CN=galvatron-test-cluster -out "$PKI/ca.crt" 2>/dev/null
  openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/service-accounts.key"
  openssl ec -in "$PKI/service-accounts.key" -pubout -out "$PKI/service-accounts.pub" 2>/dev/null
}

# make_certificate NAME SUBJECT [ALTERNATIVE_NAMES]
make_certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -keyout "$PKI/$1.key" -subj "$2" -out "$PKI/$1.csr" 2>/dev/null
  openssl x509 -req -days 365 -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial \
    -out "$PKI/$1.crt" -extfile <(echo "subjectAltName=${3:-DNS:localhost}") 2>/dev/null
}

# write_kubeconfig NAME FILE: with the certificates inside, so that the file can be copied away.
write_kubeconfig() {
  cat >"$2" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: galvatron-test
  cluster: {server: "$API_SERVER", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key")}
contexts:
- name: galvatron-test
  context: {cluster: galvatron-test, user: $1}
current-context: galvatron-test
YAML
  chmod 600 "$2"
}

make_credentials() {
  local service=kubernetes.default.svc
  make_authority
  make_certificate apiserver /CN=kube-apiserver \
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:$service,DNS:$service.cluster.local,IP:127.0.0.1,IP:10.96.0.1,IP:$HOST_ADDRESS"
  make_certificate admin /O=system:masters/CN=admin
  make_certificate controller-manager /CN=system:kube-controller-manager
  make_certificate scheduler /CN=system:kube-scheduler
  make_certificate proxy /CN=system:kube-proxy
  make_certificate front-proxy /CN=front-proxy
  local user
  for user in controller-manager scheduler proxy; do write_kubeconfig $user "$STATE/$user.kubeconfig"; done
  write_kubeconfig admin "$ADMIN_KUBECONFIG"
}

start_etcd() {
  start etcd "$BIN/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls "$ETCD_CLIENT" --advertise-client-urls "$ETCD_CLIENT" \
    --listen-peer-urls "$ETCD_PEER" --initial-advertise-peer-urls "$ETCD_PEER" --initial-cluster "default=$ETCD_PEER"
}

# Kubelets are called by address: their names are in no DNS that the host asks.
# Webhooks are called by pod address (aggregator routing): the host has no kube-proxy.
start_api_server() {
  start kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers="$ETCD_CLIENT" \
    --bind-address="$HOST_ADDRESS" --advertise-address="$HOST_ADDRESS" --secure-port=6443 \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --client-ca-file="$PKI/ca.crt" \
    --service-account-key-file="$PKI/service-accounts.pub" \
    --service-account-signing-key-file="$PKI/service-accounts.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-cluster-ip-range="$SERVICE_SUBNET" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-client-certificate="$PKI/admin.crt" --kubelet-client-key="$PKI/admin.key" \
    --kubelet-preferred-address-types=InternalIP \
    --enable-aggregator-routing=true \
    --audit-policy-file="$CLUSTER_DIR/files/audit-policy.yaml" --audit-log-path="$LOGS/audit.log" \
    --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key"
}

# A lost node is noticed after 20 s instead of 50 s: tests wait for it. A thousand jobs need more requests a second
# than the default of 20.
start_controllers() {
  start kube-controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig="$STATE/controller-manager.kubeconfig" --bind-address=127.0.0.1 \
    --root-ca-file="$PKI/ca.crt" --service-account-private-key-file="$PKI/service-accounts.key" \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --use-service-account-credentials --allocate-node-cidrs=false --leader-elect=false \
    --node-monitor-grace-period=20s --kube-api-qps=200 --kube-api-burst=400
  start kube-scheduler "$BIN/kube-scheduler" \
    --kubeconfig="$STATE/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false \
    --kube-api-qps=200 --kube-api-burst=400
}

api_server_is_ready() { kubectl get --raw /readyz; }

start_control_plane() {
  make_credentials
  start_etcd
  start_api_server
  wait_until 180 "the API server is not ready after 180 s" "read $LOGS/kube-apiserver.log and $LOGS/etcd.log" \
    api_server_is_ready
  start_controllers
}
