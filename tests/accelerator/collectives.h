// Collectives between processes of one machine, over TCP. All go through rank 0, which adds in the order of
// the ranks, so that sums are the same in each run.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>
#include <map>
#include <stdexcept>
#include <vector>
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "runtime.h"

namespace accelerator {

using Bytes = std::vector<char>;

inline void require(bool is_true, const char* action) {
  if (!is_true) throw std::runtime_error(std::string("accelerator: collective: ") + action);
}

class Socket {
 public:
  explicit Socket(int file) : file_(file) {
    int yes = 1;
    setsockopt(file_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  }
  ~Socket() { close(file_); }
  Socket(const Socket&) = delete;

  void send_all(const void* data, size_t size) {
    auto* next = static_cast<const char*>(data);
    while (size) {
      ssize_t sent = send(file_, next, size, MSG_NOSIGNAL);
      require(sent > 0, "the other process is gone");
      next += sent;
      size -= sent;
    }
  }
  void receive_all(void* data, size_t size) {
    auto* next = static_cast<char*>(data);
    while (size) {
      ssize_t received = recv(file_, next, size, 0);
      require(received > 0, "the other process is gone");
      next += received;
      size -= received;
    }
  }

 private:
  int file_;
};

inline sockaddr_in local_address(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// Sockets on which a rank 0 waits for the others, by port. The port is the communicator's unique id.
inline std::map<int, int>& listeners() {
  static auto* files = new std::map<int, int>;
  return *files;
}

inline int open_listener() {
  int file = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = local_address(0);
  socklen_t size = sizeof(address);
  require(file >= 0, "no socket");
  require(bind(file, reinterpret_cast<sockaddr*>(&address), size) == 0, "no port");
  require(listen(file, kMaxDevices) == 0, "the port does not listen");
  require(getsockname(file, reinterpret_cast<sockaddr*>(&address), &size) == 0, "the port has no number");
  int port = ntohs(address.sin_port);
  listeners()[port] = file;
  return port;
}

inline size_t size_of(C_DataType type) {
  switch (type) {
    case C_DataType::BOOL:
    case C_DataType::UINT8:
    case C_DataType::INT8: return 1;
    case C_DataType::UINT16:
    case C_DataType::INT16:
    case C_DataType::FLOAT16:
    case C_DataType::BFLOAT16: return 2;
    case C_DataType::UINT32:
    case C_DataType::INT32:
    case C_DataType::FLOAT32: return 4;
    case C_DataType::COMPLEX128: return 16;
    default: return 8;
  }
}

template <typename T, typename Wide>
void reduce_numbers(const std::vector<Bytes>& parts, C_CCLReduceOp operation, char* result, size_t count) {
  auto at = [&](size_t rank, size_t i) {
    return static_cast<Wide>(reinterpret_cast<const T*>(parts[rank].data())[i]);
  };
  for (size_t i = 0; i < count; ++i) {
    Wide value = at(0, i);
    for (size_t rank = 1; rank < parts.size(); ++rank) {
      if (operation == C_CCLReduceOp::MAX) value = std::max(value, at(rank, i));
      else if (operation == C_CCLReduceOp::MIN) value = std::min(value, at(rank, i));
      else if (operation == C_CCLReduceOp::PRODUCT) value = value * at(rank, i);
      else value = value + at(rank, i);
    }
    if (operation == C_CCLReduceOp::AVG) value = value / static_cast<Wide>(parts.size());
    reinterpret_cast<T*>(result)[i] = static_cast<T>(value);
  }
}

inline void reduce(const std::vector<Bytes>& parts, C_DataType type, C_CCLReduceOp operation, char* result,
                   size_t count) {
  switch (type) {
    case C_DataType::FLOAT32: return reduce_numbers<float, float>(parts, operation, result, count);
    case C_DataType::FLOAT64: return reduce_numbers<double, double>(parts, operation, result, count);
    case C_DataType::FLOAT16:
      return reduce_numbers<phi::dtype::float16, float>(parts, operation, result, count);
    case C_DataType::BFLOAT16:
      return reduce_numbers<phi::dtype::bfloat16, float>(parts, operation, result, count);
    case C_DataType::INT64: return reduce_numbers<int64_t, int64_t>(parts, operation, result, count);
    case C_DataType::INT32: return reduce_numbers<int32_t, int64_t>(parts, operation, result, count);
    case C_DataType::INT8: return reduce_numbers<int8_t, int64_t>(parts, operation, result, count);
    case C_DataType::UINT8: return reduce_numbers<uint8_t, int64_t>(parts, operation, result, count);
    case C_DataType::BOOL: return reduce_numbers<bool, int>(parts, operation, result, count);
    default: throw std::runtime_error("accelerator: collective: no sums of this type");
  }
}

class Communicator {
 public:
  Communicator(size_t ranks, int port, size_t rank) : rank_(rank), others_(ranks) {
    if (rank_ == 0) accept_others(port);
    else connect_to_first(port);
  }

  size_t ranks() const { return others_.size(); }
  size_t rank() const { return rank_; }

  // Collectives of several streams run in the order in which the host queued them.
  template <typename Task>
  void queue(C_Stream stream, Task task) {
    ++counts.collectives;
    uint64_t turn = next_turn_++;
    stream_of(stream)->push([=] {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return turn_ == turn; });
      try {
        task();
      } catch (const std::exception& error) {
        fprintf(stderr, "%s\n", error.what());
        std::abort();
      }
      ++turn_;
      changed_.notify_all();
    });
  }

  // Returns every rank's bytes on rank 0, and nothing on the others.
  std::vector<Bytes> gather(const void* data, size_t size) {
    std::vector<Bytes> parts;
    if (rank_) {
      others_[0]->send_all(data, size);
      return parts;
    }
    auto* bytes = static_cast<const char*>(data);
    parts.emplace_back(bytes, bytes + size);
    for (size_t rank = 1; rank < ranks(); ++rank) {
      parts.emplace_back(size);
      others_[rank]->receive_all(parts.back().data(), size);
    }
    return parts;
  }

  // Gives rank 0's bytes to all ranks.
  void spread(void* data, size_t size) {
    if (rank_) return others_[0]->receive_all(data, size);
    for (size_t rank = 1; rank < ranks(); ++rank) others_[rank]->send_all(data, size);
  }

  // The other end of a connection, or nullptr. Ranks other than 0 have a connection to rank 0 only.
  Socket* connection(size_t rank) { return rank < ranks() ? others_[rank].get() : nullptr; }

 private:
  void accept_others(int port) {
    int listener = listeners().at(port);
    for (size_t i = 1; i < ranks(); ++i) {
      int file = accept(listener, nullptr, nullptr);
      require(file >= 0, "no connection");
      auto connection = std::make_unique<Socket>(file);
      uint64_t rank = 0;
      connection->receive_all(&rank, sizeof(rank));
      require(rank > 0 && rank < ranks() && !others_[rank], "two processes have one rank");
      others_[rank] = std::move(connection);
    }
    close(listener);
    listeners().erase(port);
  }
  void connect_to_first(int port) {
    int file = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = local_address(port);
    require(file >= 0, "no socket");
    require(connect(file, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "rank 0 is gone");
    others_[0] = std::make_unique<Socket>(file);
    uint64_t rank = rank_;
    others_[0]->send_all(&rank, sizeof(rank));
  }

  size_t rank_;
  std::vector<std::unique_ptr<Socket>> others_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<uint64_t> next_turn_{0};
  uint64_t turn_ = 0;
};

inline Communicator* communicator_of(C_CCLComm comm) { return reinterpret_cast<Communicator*>(comm); }

namespace collective_calls {

inline C_Status get_name(C_CCLComm, char* name) {
  strcpy(name, "accelerator");
  return C_SUCCESS;
}
inline C_Status get_id_size(size_t* size) {
  *size = sizeof(int64_t);
  return C_SUCCESS;
}
inline C_Status get_id(C_CCLRootId* id) {
  int64_t port = open_listener();
  memcpy(id->data, &port, sizeof(port));
  return C_SUCCESS;
}
inline C_Status create(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* comm) {
  int64_t port = 0;
  memcpy(&port, id->data, sizeof(port));
  *comm = reinterpret_cast<C_CCLComm>(new Communicator(ranks, static_cast<int>(port), rank));
  return C_SUCCESS;
}
inline C_Status destroy(C_CCLComm comm) {
  delete communicator_of(comm);
  return C_SUCCESS;
}
inline C_Status all_reduce(void* source, void* target, size_t count, C_DataType type, C_CCLReduceOp operation,
                           C_CCLComm comm, C_Stream stream) {
  auto* ranks = communicator_of(comm);
  ranks->queue(stream, [=] {
    Bytes sums(count * size_of(type));
    auto parts = ranks->gather(source, sums.size());
    if (ranks->rank() == 0) reduce(parts, type, operation, sums.data(), count);
    ranks->spread(sums.data(), sums.size());
    memcpy(target, sums.data(), sums.size());
  });
  return C_SUCCESS;
}
inline C_Status reduce_to(void* source, void* target, size_t count, C_DataType type, C_CCLReduceOp operation,
                          size_t root, C_CCLComm comm, C_Stream stream) {
  auto* ranks = communicator_of(comm);
  ranks->queue(stream, [=] {
    Bytes sums(count * size_of(type));
    auto parts = ranks->gather(source, sums.size());
    if (ranks->rank() == 0) reduce(parts, type, operation, sums.data(), count);
    ranks->spread(sums.data(), sums.size());
    if (ranks->rank() == root) memcpy(target, sums.data(), sums.size());
  });
  return C_SUCCESS;
}
inline C_Status broadcast(void* data, size_t count, C_DataType type, size_t root, C_CCLComm comm,
                          C_Stream stream) {
  auto* ranks = communicator_of(comm);
  ranks->queue(stream, [=] {
    Bytes bytes(count * size_of(type));
    auto parts = ranks->gather(data, bytes.size());
    if (ranks->rank() == 0) bytes = parts.at(root);
    ranks->spread(bytes.data(), bytes.size());
    memcpy(data, bytes.data(), bytes.size());
  });
  return C_SUCCESS;
}
inline C_Status all_gather(void* source, void* target, size_t count, C_DataType type, C_CCLComm comm,
                           C_Stream stream) {
  auto* ranks = communicator_of(comm);
  ranks->queue(stream, [=] {
    size_t size = count * size_of(type);
    Bytes bytes(size * ranks->ranks());
    auto parts = ranks->gather(source, size);
    for (size_t rank = 0; rank < parts.size(); ++rank) memcpy(&bytes[rank * size], parts[rank].data(), size);
    ranks->spread(bytes.data(), bytes.size());
    memcpy(target, bytes.data(), bytes.size());
  });
  return C_SUCCESS;
}
inline C_Status reduce_scatter(void* source, void* target, size_t count, C_DataType type,
                               C_CCLReduceOp operation, C_CCLComm comm, C_Stream stream) {
  auto* ranks = communicator_of(comm);
  ranks->queue(stream, [=] {
    size_t size = count * size_of(type);
    Bytes sums(size * ranks->ranks());
    auto parts = ranks->gather(source, sums.size());
    if (ranks->rank() == 0) reduce(parts, type, operation, sums.data(), count * ranks->ranks());
    ranks->spread(sums.data(), sums.size());
    memcpy(target, &sums[ranks->rank() * size], size);
  });
  return C_SUCCESS;
}
inline C_Status send_to(void* data, size_t count, C_DataType type, size_t rank, C_CCLComm comm,
                        C_Stream stream) {
  auto* ranks = communicator_of(comm);
  Socket* connection = ranks->connection(rank);
  if (!connection) return C_ERROR;
  ranks->queue(stream, [=] { connection->send_all(data, count * size_of(type)); });
  return C_SUCCESS;
}
inline C_Status receive_from(void* data, size_t count, C_DataType type, size_t rank, C_CCLComm comm,
                             C_Stream stream) {
  auto* ranks = communicator_of(comm);
  Socket* connection = ranks->connection(rank);
  if (!connection) return C_ERROR;
  ranks->queue(stream, [=] { connection->receive_all(data, count * size_of(type)); });
  return C_SUCCESS;
}
inline C_Status group() { return C_SUCCESS; }

}  // namespace collective_calls

inline void fill_collective_calls(C_DeviceInterface* table) {
  using namespace collective_calls;
  table->xccl_get_comm_name = get_name;
  table->xccl_get_unique_id_size = get_id_size;
  table->xccl_get_unique_id = get_id;
  table->xccl_comm_init_rank = create;
  table->xccl_destroy_comm = destroy;
  table->xccl_all_reduce = all_reduce;
  table->xccl_reduce = reduce_to;
  table->xccl_broadcast = broadcast;
  table->xccl_all_gather = all_gather;
  table->xccl_reduce_scatter = reduce_scatter;
  table->xccl_send = send_to;
  table->xccl_recv = receive_from;
  table->xccl_group_start = group;
  table->xccl_group_end = group;
}

}  // namespace accelerator
