import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/**
 * Retrieval: fetches an entity's feature vector from the feature store. Plain HTTP; it knows
 * nothing of TLS. Run by the JDK's source launcher, with nothing to install:
 *
 * <pre>java Retrieval.java 127.0.0.1:8080 http://featurestore:8080</pre>
 */
public final class Retrieval {
  private static String store;

  public static void main(String[] args) throws IOException {
    if (args.length != 2) {
      System.err.println("usage: java Retrieval.java HOST:PORT FEATURESTORE-URL");
      System.exit(2);
    }
    int colon = args[0].lastIndexOf(':');
    store = args[1];
    System.setProperty("sun.net.httpserver.nodelay", "true");
    HttpServer server =
        HttpServer.create(
            new InetSocketAddress(args[0].substring(0, colon), Integer.parseInt(args[0].substring(colon + 1))), 64);
    server.setExecutor(Executors.newFixedThreadPool(8));
    server.createContext("/healthz", exchange -> answer(exchange, 200, "{\"ok\": true}".getBytes(StandardCharsets.UTF_8)));
    server.createContext("/v1/vector", Retrieval::vector);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(0)));
    server.start();
  }

  private static void vector(HttpExchange exchange) throws IOException {
    String query = exchange.getRequestURI().getRawQuery();
    try {
      HttpURLConnection connection =
          (HttpURLConnection) URI.create(store + "/v1/features?" + (query == null ? "" : query)).toURL().openConnection();
      connection.setConnectTimeout(5000);
      connection.setReadTimeout(5000);
      int status = connection.getResponseCode();
      try (InputStream in = status == 200 ? connection.getInputStream() : connection.getErrorStream()) {
        byte[] body = in == null ? new byte[0] : in.readAllBytes(); // read to its end: the connection is kept
        answer(exchange, status == 200 ? 200 : 502, body);
      }
    } catch (IOException | IllegalArgumentException e) {
      answer(exchange, 502, ("{\"error\": \"feature store: " + e.getClass().getSimpleName() + "\"}").getBytes(StandardCharsets.UTF_8));
    }
  }

  private static void answer(HttpExchange exchange, int status, byte[] body) throws IOException {
    exchange.getResponseHeaders().set("Content-Type", "application/json");
    exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
    if (body.length > 0) {
      exchange.getResponseBody().write(body);
    }
    exchange.close();
  }
}
